"""The flags of every verb, as data: llama.cpp's names, variables and defaults (build 11434), and a few more.

Sampling defaults are llama.cpp's (temperature 0.8, top-k 40, top-p 0.95, min-p 0.05), not those of
SamplingParams: a person at a terminal wants good text, a program wants the model's own distribution.
"""

from __future__ import annotations

from etude.records import DEFAULT_SAMPLERS
from etude.terminal.options import (
    Flag,
    Group,
    choice,
    filled,
    integer,
    integers,
    on_off_auto,
    real,
)

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0")
SAMPLER_LETTERS = {
    "penalties": "e", "dry": "d", "top_n_sigma": "s", "top_k": "k", "typ_p": "y", "top_p": "p", "min_p": "m",
    "xtc": "x", "temperature": "t",
}  # fmt: skip

MODEL = Group(
    "Model",
    (
        Flag(("-m", "--model"), "model", "GGUF file, Hugging Face folder, or a name that `etude pull` knows",
             filled,
             "MODEL", env="LLAMA_ARG_MODEL"),
        Flag(("-hf", "-hfr", "--hf-repo"), "hf_repo",
             "Hugging Face repository; fetched when it is not here yet",
             filled, "USER/REPO[:QUANT]", env="LLAMA_ARG_HF_REPO"),
        Flag(("-hff", "--hf-file"), "hf_file", "file of that repository, instead of a quantisation", filled,
             "FILE",
             env="LLAMA_ARG_HF_FILE"),
        Flag(("--offline",), "offline", "never fetch anything", default=False, off=("--no-offline",),
             env="LLAMA_ARG_OFFLINE"),
    ),
)  # fmt: skip

MACHINE = Group(
    "Machine and memory",
    (
        Flag(("-t", "--threads"), "threads", "threads (default: the cores of this machine)", integer(1, 1024),
             env="LLAMA_ARG_THREADS"),
        Flag(("-tb", "--threads-batch"), "threads_batch", "threads for prompts; must equal -t, see there",
             integer(1, 1024), env="LLAMA_ARG_THREADS_BATCH"),
        Flag(("-C", "--cpu-mask"), "cpu_mask", "run on the CPUs of this hexadecimal mask only", filled,
             "MASK"),
        Flag(("-Cr", "--cpu-range"), "cpu_range", "run on these CPUs only", filled, "LOW-HIGH"),
        Flag(("-c", "--ctx-size"), "ctx_size", "context in tokens (default: the model's, at most 8192; 0: "
             "the model's)", integer(1, 2**30, {0: "the model's own"}), env="LLAMA_ARG_CTX_SIZE"),
        Flag(("-ub", "--ubatch-size"), "ubatch_size", "most tokens of prompts in one step", integer(1, 2**16),
             env="LLAMA_ARG_UBATCH"),
        Flag(("-ctk", "--cache-type-k"), "cache_type_k", f"type of cached keys: {', '.join(CACHE_TYPES)}",
             choice(*CACHE_TYPES), "TYPE", "f16", env="LLAMA_ARG_CACHE_TYPE_K"),
        Flag(("-ctv", "--cache-type-v"), "cache_type_v", f"type of cached values: {', '.join(CACHE_TYPES)}",
             choice(*CACHE_TYPES), "TYPE", "f16", env="LLAMA_ARG_CACHE_TYPE_V"),
        Flag(("--warmup",), "warmup", "compute one token before starting", default=False, off=("--no-warmup",
             )),
    ),
)  # fmt: skip

CONTEXT = Group(
    "When the context is full",
    (
        Flag(("--context-shift", "--context-shifted"), "context_shift",
             "forget the oldest half and go on (default: stop)",
             default=False, off=("--no-context-shift",), env="LLAMA_ARG_CONTEXT_SHIFT"),
        Flag(("--keep",), "keep", "tokens of the prompt that a context shift keeps (-1: all)",
             integer(0, 2**30, {-1: "all"}), default=0),
        Flag(("--prompt-cache",), "prompt_cache", "file that keeps the computed prompt for the next start",
             filled,
             "FILE"),
        Flag(("--prompt-cache-all",), "prompt_cache_all", "keep the answers in it too", default=False),
        Flag(("--prompt-cache-ro",), "prompt_cache_ro", "use the file, do not write it", default=False),
    ),
)  # fmt: skip

ROPE = Group(
    "Longer contexts (RoPE)",
    (
        Flag(("--rope-scaling",), "rope_scaling", "none, linear or yarn", choice("none", "linear", "yarn"),
             "METHOD",
             env="LLAMA_ARG_ROPE_SCALING_TYPE"),
        Flag(("--rope-scale",), "rope_scale", "the context is N times longer than trained", real(0,
             above=True),
             env="LLAMA_ARG_ROPE_SCALE"),
        Flag(("--rope-freq-base",), "rope_freq_base", "base frequency", real(0, above=True),
             env="LLAMA_ARG_ROPE_FREQ_BASE"),
        Flag(("--rope-freq-scale",), "rope_freq_scale", "1/N of --rope-scale", real(0, above=True),
             env="LLAMA_ARG_ROPE_FREQ_SCALE"),
        Flag(("--yarn-orig-ctx",), "yarn_orig_ctx", "context the model was trained with", integer(1, 2**30),
             env="LLAMA_ARG_YARN_ORIG_CTX"),
        Flag(("--yarn-ext-factor",), "yarn_ext_factor", "extrapolation mix", real(0),
             env="LLAMA_ARG_YARN_EXT_FACTOR"),
        Flag(("--yarn-attn-factor",), "yarn_attn_factor", "scales the attention", real(0, above=True),
             env="LLAMA_ARG_YARN_ATTN_FACTOR"),
        Flag(("--yarn-beta-slow",), "yarn_beta_slow", "high correction dimension", real(0, above=True),
             env="LLAMA_ARG_YARN_BETA_SLOW"),
        Flag(("--yarn-beta-fast",), "yarn_beta_fast", "low correction dimension", real(0, above=True),
             env="LLAMA_ARG_YARN_BETA_FAST"),
    ),
)  # fmt: skip

LORA = Group(
    "LoRA adapters",
    (
        Flag(("--lora",), "lora", "adapter: GGUF file or PEFT folder", filled, "FILE", (), repeated=True),
        Flag(("--lora-scaled",), "lora_scaled", "adapter with a scale", filled, "FILE:SCALE", (),
             repeated=True),
    ),
)  # fmt: skip

SAMPLING = Group(
    "Sampling",
    (
        Flag(("--temp", "--temperature"), "temp", "temperature (0: the most likely token, always)", real(0),
             default=0.8, env="LLAMA_ARG_TEMPERATURE"),
        Flag(("--top-k",), "top_k", "only the N most likely tokens (0: off)", integer(0), default=40,
             env="LLAMA_ARG_TOP_K"),
        Flag(("--top-p",), "top_p", "only the most likely tokens that sum up to N (1: off)", real(0, 1),
             default=0.95, env="LLAMA_ARG_TOP_P"),
        Flag(("--min-p",), "min_p", "only tokens at least N times as likely as the best (0: off)", real(0, 1),
             default=0.05, env="LLAMA_ARG_MIN_P"),
        Flag(("-s", "--seed"), "seed", "seed of the random numbers (-1: a new one)",
             integer(0, 2**32 - 1, {-1: "a new one"}), default=-1),
        Flag(("--typical", "--typical-p"), "typical", "locally typical sampling (1: off)", real(0, 1),
             default=1.0),
        Flag(("--top-nsigma", "--top-n-sigma"), "top_n_sigma",
             "logits within N standard deviations of the best (-1: off)",
             real(0, above=True, also=(-1.0,)), default=-1.0),
        Flag(("--xtc-probability",), "xtc_probability", "exclude top choices: how often (0: off)", real(0, 1),
             default=0.0),
        Flag(("--xtc-threshold",), "xtc_threshold", "exclude top choices: those above N", real(0, 1),
             default=0.1),
        Flag(("--repeat-penalty",), "repeat_penalty", "penalise repeated tokens (1: off)", real(0,
             above=True),
             default=1.0, env="LLAMA_ARG_REPEAT_PENALTY"),
        Flag(("--repeat-last-n",), "repeat_last_n", "look at the last N tokens (0: off, -1: all)",
             integer(0, also={-1: "the whole context"}), default=64),
        Flag(("--presence-penalty",), "presence_penalty", "penalise tokens that occurred (0: off)",
             real(-100, 100), default=0.0, env="LLAMA_ARG_PRESENCE_PENALTY"),
        Flag(("--frequency-penalty",), "frequency_penalty", "… for every time they occurred (0: off)",
             real(-100, 100), default=0.0, env="LLAMA_ARG_FREQUENCY_PENALTY"),
        Flag(("--dry-multiplier",), "dry_multiplier", "DRY, against repeated phrases: strength (0: off)",
             real(0),
             default=0.0),
        Flag(("--dry-base",), "dry_base", "DRY: growth with the length of the phrase", real(1), default=1.75),
        Flag(("--dry-allowed-length",), "dry_allowed_length", "DRY: phrases of this length go free",
             integer(1),
             default=2),
        Flag(("--dry-penalty-last-n",), "dry_penalty_last_n",
             "DRY: look at the last N tokens (0: off, -1: all)",
             integer(0, also={-1: "the whole context"}), default=64),
        Flag(("--dry-sequence-breaker",), "dry_sequence_breaker",
             "DRY: text that ends a phrase, repeatable ('none': no such text)",
             filled, "TEXT", (), repeated=True),
        Flag(("--dynatemp-range",), "dynatemp_range", "temperature by entropy: ± N (0: off)", real(0),
             default=0.0),
        Flag(("--dynatemp-exp",), "dynatemp_exp", "temperature by entropy: exponent", real(0, above=True),
             default=1.0),
        Flag(("--mirostat",), "mirostat", "Mirostat 1 or 2, instead of the chain (0: off)", integer(0, 2),
             default=0),
        Flag(("--mirostat-lr",), "mirostat_lr", "Mirostat: learning rate", real(0, above=True), default=0.1),
        Flag(("--mirostat-ent",), "mirostat_ent", "Mirostat: target surprise in bits", real(0, above=True),
             default=5.0),
        Flag(("--samplers",), "samplers", "the chain and its order, separated by ;", filled, "NAMES",
             ";".join(DEFAULT_SAMPLERS)),
        Flag(("--sampler-seq", "--sampling-seq"), "sampler_seq", "the same as one letter each", filled,
             "LETTERS",
             "".join(SAMPLER_LETTERS[name] for name in DEFAULT_SAMPLERS)),
        Flag(("-l", "--logit-bias"), "logit_bias",
             "make a token likelier or less likely: 15043+1, 15043-inf", filled,
             "ID±BIAS", (), repeated=True),
        Flag(("--ignore-eos",), "ignore_eos", "never end by itself", default=False),
    ),
)  # fmt: skip

GRAMMAR = Group(
    "Form of the answer (at most one)",
    (
        Flag(("--grammar",), "grammar", "GBNF grammar", filled, "TEXT"),
        Flag(("--grammar-file",), "grammar_file", "file with a GBNF grammar", filled, "FILE"),
        Flag(("-j", "--json-schema"), "json_schema", "JSON schema; '{}' is any JSON", filled, "TEXT"),
        Flag(("-jf", "--json-schema-file"), "json_schema_file", "file with a JSON schema", filled, "FILE"),
        Flag(("--regex",), "regex", "regular expression", filled, "TEXT"),
        Flag(("--lark-file",), "lark_file", "file with a Lark grammar", filled, "FILE"),
    ),
)  # fmt: skip

PROMPT = (
    Flag(("-p", "--prompt"), "prompt", "the text ('-': read it from the standard input)", str, "TEXT"),
    Flag(("-f", "--file"), "file", "file with the text ('-': the standard input)", filled, "FILE"),
    Flag(("-sys", "--system-prompt"), "system_prompt", "system message", str, "TEXT"),
    Flag(("-sysf", "--system-prompt-file"), "system_prompt_file", "file with the system message", filled,
         "FILE"),
    Flag(("-e", "--escape"), "escape",
         "read \\n, \\t, … in -p, -sys and -r as what they stand for (default: yes)", default=True,
         off=("--no-escape",)),
    Flag(("-n", "--predict", "--n-predict"), "predict",
         "most tokens of an answer (-1: no limit, -2: until the context is full)",
         integer(1, also={-1: "no limit", -2: "until the context is full"}), default=-1,
         env="LLAMA_ARG_N_PREDICT"),
    Flag(("-r", "--reverse-prompt"), "reverse_prompt", "end the answer at this text, repeatable", filled,
         "TEXT", (),
         repeated=True),
    Flag(("-sp", "--special"), "special", "show the model's control tokens", default=False),
    Flag(("--verbose-prompt",), "verbose_prompt", "show the prompt's tokens", default=False),
)  # fmt: skip

TEMPLATE = Group(
    "Chat template and thinking",
    (
        Flag(("--chat-template",), "chat_template", "name of a built-in template, or Jinja text", filled,
             "NAME",
             env="LLAMA_ARG_CHAT_TEMPLATE"),
        Flag(("--chat-template-file",), "chat_template_file", "file with a Jinja template", filled, "FILE",
             env="LLAMA_ARG_CHAT_TEMPLATE_FILE"),
        Flag(("--chat-template-kwargs",), "chat_template_kwargs", "variables for the template", filled,
             "JSON",
             env="LLAMA_ARG_CHAT_TEMPLATE_KWARGS"),
        Flag(("-rea", "--reasoning"), "reasoning", "think: on, off or auto (as the template does)",
             on_off_auto,
             "ON|OFF|AUTO", env="LLAMA_ARG_REASONING"),
        Flag(("--reasoning-effort",), "reasoning_effort", "given to the template: low, medium, high, …",
             filled,
             "LEVEL", "default", env="LLAMA_ARG_REASONING_EFFORT"),
        Flag(("--reasoning-budget",), "reasoning_budget", "close the thinking after N tokens (-1: no limit)",
             integer(0, also={-1: "no limit"}), default=-1, env="LLAMA_ARG_THINK_BUDGET"),
        Flag(("--reasoning-budget-message",), "reasoning_budget_message", "text to close it with", str,
             "TEXT", "",
             env="LLAMA_ARG_THINK_BUDGET_MESSAGE"),
        Flag(("--reasoning-format",), "reasoning_format",
             "deepseek (thinking apart), none (as it comes) or auto",
             choice("auto", "deepseek", "none"), "FORMAT", "auto", env="LLAMA_ARG_THINK"),
    ),
)  # fmt: skip

SHOW_TIMINGS = Flag(
    ("--show-timings",), "show_timings", "show the speed of each answer (default: at a terminal)",
    default=None,
    off=("--no-show-timings",), env="LLAMA_ARG_SHOW_TIMINGS",
)  # fmt: skip
COLOR = Flag(
    ("-co", "--color"), "color", "colours: on, off or auto (at a terminal without NO_COLOR)", on_off_auto,
    "[ON|OFF|AUTO]", bare=True,
)  # fmt: skip
CONVERSATION = Flag(
    ("-cnv", "--conversation"), "conversation", "apply the chat template, or not", default=None,
    off=("-no-cnv", "--no-conversation"),
)  # fmt: skip

CHAT = Group(
    "Chat",
    (
        *PROMPT,
        CONVERSATION,
        Flag(("-st", "--single-turn"), "single_turn", "one answer, then exit", default=False),
        Flag(("-mli", "--multiline-input"), "multiline_input",
             "Enter makes a new line; a line that ends in \\ sends",
             default=False),
        Flag(("--simple-io",), "simple_io", "plain input and output, without line editing", default=False),
        COLOR,
        SHOW_TIMINGS,
        Flag(("-o", "--output", "--output-file"), "output", "write the conversation into this file too",
             filled, "FILE"),
    ),
)  # fmt: skip

GENERATE = Group(
    "Text",
    (
        *PROMPT,
        CONVERSATION,
        Flag(("--samples", "--n"), "samples", "completions of the same prompt, computed together", integer(1,
             2**16),
             default=1),
        Flag(("--display-prompt",), "display_prompt", "write the prompt before the completion", default=False,
             off=("--no-display-prompt",)),
        Flag(("--json",), "json", "one JSON object a line for each completion: text, token ids, logprobs",
             default=False),
        Flag(("--logprobs",), "logprobs", "alternatives of every token in the JSON", integer(0, 1000),
             default=0),
        Flag(("-0", "--null"), "null", "end each completion with a zero byte", default=False),
        SHOW_TIMINGS,
    ),
)  # fmt: skip

TOKENIZE = Group(
    "Text",
    (
        Flag(("-p", "--prompt"), "prompt", "the text ('-': read it from the standard input)", str, "TEXT"),
        Flag(("-f", "--file"), "file", "file with the text ('-': the standard input)", filled, "FILE"),
        Flag(("--stdin",), "stdin", "read the text from the standard input", default=False),
        Flag(("--ids",), "ids", "print the ids only, as a list", default=False),
        Flag(("--json",), "json", "print a JSON object: ids and pieces", default=False),
        Flag(("--show-count",), "show_count", "print the number of tokens", default=False),
        Flag(("--bos",), "bos", "add the special tokens that the model adds (default: yes)", default=True,
             off=("--no-bos",)),
        Flag(("--parse-special",), "parse_special",
             "read special tokens in the text (default: they are text)",
             default=False, off=("--no-parse-special",)),
        Flag(("-e", "--escape"), "escape", "read \\n, \\t, … in -p as what they stand for (default: yes)",
             default=True,
             off=("--no-escape",)),
        Flag(("--decode",), "decode", "the other way round: ids to text", integers(0), "ID,ID,…"),
    ),
)  # fmt: skip

INFO = Group(
    "What to show",
    (
        Flag(("-c", "--ctx-size"), "ctx_size", "memory at this context (0: the model's own)", integer(0,
             2**30), default=0,
             env="LLAMA_ARG_CTX_SIZE"),
        Flag(("-ctk", "--cache-type-k"), "cache_type_k", "type of cached keys", choice(*CACHE_TYPES), "TYPE",
             "f16",
             env="LLAMA_ARG_CACHE_TYPE_K"),
        Flag(("-ctv", "--cache-type-v"), "cache_type_v", "type of cached values", choice(*CACHE_TYPES),
             "TYPE", "f16",
             env="LLAMA_ARG_CACHE_TYPE_V"),
        Flag(("--tensors",), "tensors", "every tensor in a line of its own", default=False),
        Flag(("--metadata",), "metadata", "metadata in full, long arrays too", default=False),
        Flag(("--template",), "template", "only the chat template, as it is", default=False),
        Flag(("--json",), "json", "all of it as one JSON object", default=False),
    ),
)  # fmt: skip

BENCH = Group(
    "Tests (N: one number or several, separated by commas)",
    (
        Flag(("-p", "--n-prompt"), "n_prompt", "prefill: tokens of a prompt (0: no such test)", integers(0),
             default=(512,)),
        Flag(("-n", "--n-gen"), "n_gen", "decode: tokens of one stream (0: no such test)", integers(0),
             default=(128,)),
        Flag(("-pg",), "pg", "prefill and decode together, repeatable", filled, "PP,TG", (), repeated=True),
        Flag(("-d", "--n-depth"), "n_depth", "tokens already in the context", integers(0), default=(0,)),
        Flag(("-npl",), "npl", "groups: sequences decoded together", integers(1), default=()),
        Flag(("-npp",), "npp", "groups: tokens of the prompt", integers(1), default=(128,)),
        Flag(("-ntg",), "ntg", "groups: tokens of each sequence", integers(1), default=(128,)),
        Flag(("-pps",), "pps", "groups: one shared prompt (default: a prompt for each sequence)",
             default=False),
        Flag(("-r", "--repetitions"), "repetitions", "times to run each test", integer(1, 10_000), default=5),
        Flag(("--no-warmup",), "no_warmup", "do not run each test's work once before measuring",
             default=False),
        Flag(("-o", "--output"), "output", "what to print: md, csv, json or jsonl",
             choice("md", "csv", "json", "jsonl"), "FORMAT", "md"),
        Flag(("--json",), "json",
             "write the JSON there too ('-': to the standard output instead of the table)", filled, "FILE|-"),
        Flag(("--progress",), "progress", "say on the error output what runs", default=False),
    ),
)  # fmt: skip
BENCH_MACHINE = Group(
    "Machine and memory",
    (
        Flag(("-t", "--threads"), "threads",
             "threads, several separated by commas (default: the cores of this machine)",
             integers(1, 1024)),
        *(flag for flag in MACHINE.flags if flag.key in ("cpu_mask", "cpu_range", "ubatch_size",
        "cache_type_k", "cache_type_v")),
    ),
)  # fmt: skip
