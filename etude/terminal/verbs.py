"""What `etude` can do: every verb with its flags, its help and an example that works."""

from __future__ import annotations

from etude.terminal import flags, refused
from etude.terminal.judging_verbs import EVAL, RUNS
from etude.terminal.options import Group, Verb
from etude.terminal.serving_verb import SERVE
from etude.terminal.viewing_verb import VIEW

_MODEL_NOTE = """
MODEL is a GGUF file, a Hugging Face folder, or a name that `etude pull` knows (default: smollm2-135m,
fetched when it is not here yet)."""
_ENV_NOTE = """
Each flag with a name in [brackets] can also be given by that environment variable; the flag wins. Flags of
llama.cpp that are not listed say in one sentence why they cannot work here.
"""
_RUNNING = (flags.SAMPLING, flags.GRAMMAR, flags.MACHINE, flags.CONTEXT, flags.ROPE, flags.LORA)

CHAT = Verb(
    "chat",
    "talk with a model",
    "etude chat [MODEL] [flags]",
    (flags.MODEL, flags.CHAT, flags.TEMPLATE, *_RUNNING),
    ("model", "MODEL"),
    refused.CHAT,
    _MODEL_NOTE
    + """

Ctrl-C stops an answer, Ctrl-D leaves. Alt-Enter, or a backslash at the end of a line, makes a new line; a
block between lines of three double quotes is one message. /help lists the commands. Input may be piped: each
line is a message.

    etude chat
    etude chat --model FILE -t 2 --context-shifted -n 512
    etude chat -sys "Answer in French." -p "What is a fjord?" -st
"""
    + _ENV_NOTE,
)

GENERATE = Verb(
    "generate",
    "complete a text; only the completion goes to the standard output",
    "etude generate [MODEL] (-p TEXT | -f FILE | -p - < FILE) [flags]",
    (flags.MODEL, flags.GENERATE, flags.TEMPLATE, *_RUNNING),
    ("model", "MODEL"),
    refused.RUNNING,
    _MODEL_NOTE
    + """

If the model has a chat template, the text is a message and the completion is the answer (thinking goes to the
error output); with -no-cnv, and for a base model, the text is continued as it is.

    etude generate -p "What is a fjord?" -n 64
    git diff | etude generate -sys "Write a commit message for this diff." -p - --temp 0
    etude generate -no-cnv -p "Once upon a time" -n 16 --samples 8 --json | jq .text
"""
    + _ENV_NOTE,
)

TOKENIZE = Verb(
    "tokenize",
    "text to token ids, and back",
    "etude tokenize [MODEL] (-p TEXT | -f FILE | --stdin | --decode ID,ID,…) [flags]",
    (flags.MODEL, flags.TOKENIZE),
    ("model", "MODEL"),
    (),
    _MODEL_NOTE
    + """

    etude tokenize -p "Hello world"
    etude tokenize -f book.txt --show-count
    etude tokenize --decode 19556,905
""",
)

INFO = Verb(
    "info",
    "what is in a model file: metadata, tensors, memory at a context length",
    "etude info [MODEL] [flags]",
    (flags.MODEL, flags.INFO),
    ("model", "MODEL"),
    (),
    _MODEL_NOTE
    + """
Files of architectures that cannot be run are shown too.

    etude info model.gguf -c 32768
    etude info model.gguf --template
""",
)

BENCH = Verb(
    "bench",
    "speed of prefill, decode and groups",
    "etude bench [MODEL] [flags]",
    (Group("Model", (flags.MODEL.flags[0], flags.MODEL.flags[3])), flags.BENCH, flags.BENCH_MACHINE),
    ("model", "MODEL"),
    refused.BENCH,
    _MODEL_NOTE
    + """

Columns and JSON fields are llama-bench's; groups (-npl) also carry llama-batched-bench's. Tokens are sampled
at temperature 1 over the whole vocabulary, with their logprobs: that is part of the time. Decode is measured
after the prompt is done, and never with it (except -pg).

    etude bench -p 512 -n 128
    etude bench -p 0 -n 0 -npp 128 -ntg 128 -npl 1,8,32 -pps
    etude bench --json - -r 3 | jq '.[].avg_ts'
""",
)

# pull reads its own command line (terminal/pull.py); here only its line in the overview
PULL = Verb("pull", "fetch a model once, find it ever after", "etude pull [NAME]", ())

# likewise (terminal/merge.py)
MERGE = Verb("merge", "put a LoRA adapter into a model's weights", "etude merge BASE ADAPTER -o OUT", ())

# trainings read a config file and dotted overrides (terminal/train.py, which has a row for each)
GRPO = Verb("grpo", "teach a model by a reward: GRPO and its successors", "etude grpo [CONFIG.toml]", ())
PPO = Verb("ppo", "the same with a critic: PPO, as RLHF has it", "etude ppo [CONFIG.toml]", ())
SFT = Verb("sft", "teach a model the answers of conversations and texts", "etude sft [CONFIG.toml]", ())
REWARD_MODEL = Verb(
    "reward-model", "train a judge of answers from pairs or labels", "etude reward-model [CONFIG.toml]", ()
)
DPO = Verb("dpo", "teach a model by preferences: DPO, IPO, KTO, ORPO, SimPO", "etude dpo [CONFIG.toml]", ())
TRAININGS = (SFT, REWARD_MODEL, PPO, GRPO, DPO)

VERSION = Verb("version", "versions of this program and its parts", "etude version", ())

VERBS = {
    verb.name: verb
    for verb in (
        *(CHAT, GENERATE, SERVE, TOKENIZE, INFO, BENCH, *TRAININGS),
        *(EVAL, RUNS, VIEW, PULL, MERGE, VERSION),
    )
}
