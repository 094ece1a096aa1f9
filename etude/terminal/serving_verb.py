"""The flags of `etude serve`: llama-server's names, variables and defaults, and the few that are ours."""

from __future__ import annotations

from dataclasses import replace

from etude.terminal import flags, refused
from etude.terminal.options import (
    FALSE_WORDS,
    TRUE_WORDS,
    Flag,
    Group,
    Refusal,
    Verb,
    choice,
    filled,
    integer,
)  # fmt: skip

POOLINGS = ("mean", "last", "none")

MODELS = Group(
    "Models",
    (
        Flag(("-m", "--model"), "model", "GGUF file, Hugging Face folder, or a name that `etude pull` knows; "
             "repeatable, and NAME=MODEL gives it a name of its own", filled, "MODEL", (),
             env="LLAMA_ARG_MODEL", repeated=True),
        *flags.MODEL.flags[1:],
        Flag(("--models-dir",), "models_dir", "serve every GGUF file of this folder", filled, "FOLDER",
             env="LLAMA_ARG_MODELS_DIR"),
        Flag(("--models-max",), "models_max", "models loaded at once; the one used longest ago makes room",
             integer(1, 1000), default=4, env="LLAMA_ARG_MODELS_MAX"),
        Flag(("-a", "--alias"), "alias", "names of the first model in the API, separated by commas", filled,
             "NAMES", env="LLAMA_ARG_ALIAS"),
        Flag(("--tags",), "tags", "labels of the first model, separated by commas", filled, "TAGS",
             env="LLAMA_ARG_TAGS"),
        Flag(("--sleep-idle-seconds",), "sleep_idle_seconds", "unload a model that nobody used for so long "
             "(-1: never)", integer(1, also={-1: "never"}), default=-1,
             env="LLAMA_ARG_SLEEP_IDLE_SECONDS"),
    ),
)  # fmt: skip

LISTEN = Group(
    "Server",
    (
        Flag(("--host",), "host", "addresses to listen at, separated by commas; others than the default let "
             "other machines in", filled, "ADDRESSES", "127.0.0.1", env="LLAMA_ARG_HOST"),
        Flag(("--port",), "port", "port (0: any that is free)", integer(0, 65535), default=8080,
             env="LLAMA_ARG_PORT"),
        Flag(("--api-prefix",), "api_prefix", "what every path begins with, such as /llm", str, "PREFIX", "",
             env="LLAMA_ARG_API_PREFIX"),
        Flag(("--cors-origins",), "cors_origins", "web pages of these origins may ask, separated by commas "
             "(default: none; *: any; localhost: of this machine)", str, "ORIGINS",
             env="LLAMA_ARG_CORS_ORIGINS"),
        Flag(("--cors-credentials",), "cors_credentials", "they may send cookies and passwords, which a "
             "proxy before this server may ask for", default=False, off=("--no-cors-credentials",),
             env="LLAMA_ARG_CORS_CREDENTIALS"),
        Flag(("-to", "--timeout"), "timeout", "seconds after which a client that reads nothing is dropped",
             integer(1), default=600, env="LLAMA_ARG_TIMEOUT"),
        Flag(("--sse-ping-interval",), "sse_ping_interval", "seconds of silence after which a stream gets a "
             "comment (-1: never)", integer(1, also={-1: "never"}), default=30,
             env="LLAMA_ARG_SSE_PING_INTERVAL"),
        Flag(("-np", "--parallel"), "parallel", "answers written at once (-1: as many as fit a step)",
             integer(1, 4096, {-1: "as many as fit a step"}), default=-1, env="LLAMA_ARG_N_PARALLEL"),
        Flag(("--max-queue",), "max_queue", "answers that may run or wait; beyond them a request gets 429",
             integer(1), default=1024),
        Flag(("--max-body-mb",), "max_body_mb", "megabytes of a request; a larger one gets 413",
             integer(1, 2**16), default=32),
    ),
)  # fmt: skip

KEYS = Group(
    "Who may ask",
    (
        Flag(("--api-key",), "api_key", "keys that clients must show, separated by commas (seen by every "
             "user of this machine; better in the variable or a file)", filled, "KEYS", env="LLAMA_API_KEY"),
        Flag(("--api-key-file",), "api_key_file", "file with a key in each line", filled, "FILE",
             env="LLAMA_ARG_API_KEY_FILE"),
        Flag(("--admin-key",), "admin_key", "keys that open the routes which pause it and change weights and "
             "adapters, and all others (better in the variable or a file, too)", filled, "KEYS",
             env="ETUDE_ADMIN_KEY"),
        Flag(("--admin-key-file",), "admin_key_file", "file with an admin key in each line", filled, "FILE",
             env="ETUDE_ADMIN_KEY_FILE"),
    ),
)  # fmt: skip

PAGES = Group(
    "Pages",
    (
        Flag(("--ui", "--webui"), "ui", "the pages, at / (default: yes)", default=True,
             off=("--no-ui", "--no-webui"), env="LLAMA_ARG_UI"),
        Flag(("--runs",), "runs", "folder of training runs: the run pages show them, and any checkpoint of "
             "theirs is a model, by the name runs/NAME/STEP", filled, "FOLDER"),
        Flag(("--data-dir",), "data_dir", "folder where conversations are kept (default: etude in the user's "
             "data folder)", filled, "FOLDER"),
    ),
)  # fmt: skip

ROUTES = Group(
    "What it offers",
    (
        Flag(("--metrics",), "metrics", "/metrics, for Prometheus", default=False,
             env="LLAMA_ARG_ENDPOINT_METRICS"),
        Flag(("--slots",), "slots", "/slots, which shows what runs (default: yes)", default=True,
             off=("--no-slots",), env="LLAMA_ARG_ENDPOINT_SLOTS"),
        Flag(("--props",), "props", "POST /props", default=False, env="LLAMA_ARG_ENDPOINT_PROPS"),
        Flag(("--slot-save-path",), "slot_save_path", "folder for prompt caches that requests save by name",
             filled, "FOLDER"),
        Flag(("--weights-dir",), "weights_dir", "folder with weights that a trainer may load by name, with "
             "an admin key", filled, "FOLDER"),
        Flag(("--lora-dir",), "lora_dir", "folder with LoRA adapters that a trainer may load by name, with "
             "an admin key", filled, "FOLDER"),
        Flag(("-v", "--verbose", "--log-verbose"), "verbose", "answers say in `__verbose` what the model "
             "read and how they were drawn, unless a request has `verbose` false", default=False),
        Flag(("--prefill-assistant",), "prefill_assistant", "continue an assistant's message at the end of a "
             "conversation (default: yes)", default=True, off=("--no-prefill-assistant",),
             env="LLAMA_ARG_PREFILL_ASSISTANT"),
        Flag(("--pooling",), "pooling", f"what embeddings are made of: {', '.join(POOLINGS)} (of a text's "
             "tokens)", choice(*POOLINGS), "HOW", "mean", env="LLAMA_ARG_POOLING"),
        Flag(("--lora-init-without-apply",), "lora_init_without_apply", "load the adapters of --lora, and "
             "use one only where a request asks", default=False),
    ),
)  # fmt: skip

LIMITS = Group(
    "Answers",
    tuple(
        flag for flag in flags.PROMPT if flag.key in ("predict", "reverse_prompt", "escape")
    ),
)  # fmt: skip
CONTEXT = Group(
    flags.CONTEXT.title, tuple(flag for flag in flags.CONTEXT.flags if flag.key in ("context_shift", "keep"))
)
TEMPLATE = Group(
    flags.TEMPLATE.title,
    tuple(flag for flag in flags.TEMPLATE.flags if not flag.key.startswith("reasoning_budget")),
)
MACHINE = replace(flags.MACHINE, flags=tuple(flag for flag in flags.MACHINE.flags if flag.key != "warmup"))

_YES, _NO = ("", *TRUE_WORDS), ("", *FALSE_WORDS)
_PAGES = "the pages are built in and cannot be set up from the command line"
_AGENT = "the server runs no tools; a client does"
REFUSED = (
    *(each for each in refused.RUNNING if not {"-np", "-v"} & set(each.names)),
    Refusal(("-cb", "--cont-batching"), "requests always run together", ("LLAMA_ARG_CONT_BATCHING",), _YES),
    Refusal(("-nocb", "--no-cont-batching"), "requests always run together; use -np 1"),
    Refusal(("--cache-prompt",), "computed prompts are always kept", ("LLAMA_ARG_CACHE_PROMPT",), _YES),
    Refusal(("--no-cache-prompt",), "computed prompts are always kept: that changes no answer"),
    Refusal(("--cache-reuse",), "whole prefixes are reused, of any request, and nothing is moved",
            ("LLAMA_ARG_CACHE_REUSE",), ("0",), 1),
    Refusal(("--cache-idle-slots", "-sps", "--slot-prompt-similarity"), "there are no slots; prefixes are "
            "found whoever computed them", ("LLAMA_ARG_CACHE_IDLE_SLOTS",)),
    Refusal(("--no-cache-idle-slots",), "", (), ("",)),
    Refusal(("-cms", "--checkpoint-min-step"), "there are no checkpoints",
            ("LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT",), (), 1),
    Refusal(("--kv-unified-per-slot",), "one cache serves all sequences", ("LLAMA_ARG_KV_UNIFIED_PER_SLOT",)),
    Refusal(("--warmup", "--no-warmup"), "there is nothing to warm up", ("LLAMA_ARG_WARMUP",), ("",)),
    Refusal(("--embedding", "--embeddings"), "embeddings are always there", ("LLAMA_ARG_EMBEDDINGS",), _YES),
    Refusal(("--rerank", "--reranking"), "there are no reranking models", ("LLAMA_ARG_RERANKING",)),
    Refusal(("--embd-normalize",), "requests to /embedding choose how vectors are normalised", (), ("2",), 1),
    Refusal(("--threads-http",), "one thread serves HTTP, however many clients there are",
            ("LLAMA_ARG_THREADS_HTTP",), (), 1),
    Refusal(("--ssl-key-file", "--ssl-cert-file"), "TLS is a proxy's affair: put nginx or Caddy before it",
            ("LLAMA_ARG_SSL_*",), (), 1),
    Refusal(("--path", "--ui-config", "--webui-config", "--ui-config-file", "--webui-config-file"), _PAGES,
            ("LLAMA_ARG_STATIC_PATH", "LLAMA_ARG_UI_CONFIG*"), (), 1),
    Refusal(("--tools", "--tools-runtime", "--mcp-servers-config", "--mcp-servers-json", "--agent",
             "--ui-mcp-proxy", "--webui-mcp-proxy"), _AGENT, ("LLAMA_ARG_TOOLS*", "LLAMA_ARG_MCP_*"), (), 1),
    Refusal(("--media-path",), "there is no image, audio or video input; only text models run", (), (), 1),
    Refusal(("--models-preset", "--no-models-autoload"), "models of --models-dir are loaded when asked for",
            ("LLAMA_ARG_MODELS_PRESET",), (), 1),
    Refusal(("--models-autoload",), "", ("LLAMA_ARG_MODELS_AUTOLOAD",), _YES),
    Refusal(("--reuse-port",), "one process listens at a port", ("LLAMA_ARG_REUSE_PORT",), _NO),
    Refusal(("--cors-methods", "--cors-headers"),
            "--cors-origins decides; methods and headers are those that the routes have",
            ("LLAMA_ARG_CORS_METHODS", "LLAMA_ARG_CORS_HEADERS"), (), 1),
)  # fmt: skip

SERVE = Verb(
    "serve",
    "an OpenAI-compatible server, with a page to chat in",
    "etude serve [MODEL …] [flags]",
    (
        *(MODELS, LISTEN, KEYS, PAGES, ROUTES, LIMITS, TEMPLATE),
        *(flags.SAMPLING, MACHINE, CONTEXT, flags.ROPE, flags.LORA),
    ),
    ("model", "MODEL"),
    REFUSED,
    """
MODEL is a GGUF file, a Hugging Face folder, or a name that `etude pull` knows (default: smollm2-135m,
fetched when it is not here yet). The first is loaded at the start, others when they are asked for. Flags of
sampling are the defaults of requests that do not say.

It listens on this machine only; with --host 0.0.0.0 give it --api-key too. Ctrl-C, or SIGTERM, lets what runs
finish and then ends; a second one ends at once.

    etude serve
    etude serve model.gguf --port 9000 -c 4096
    etude serve small=model.gguf large=other.gguf --models-max 1 --sleep-idle-seconds 300

Each flag with a name in [brackets] can also be given by that environment variable; the flag wins. Flags of
llama-server that are not listed say in one sentence why they cannot work here.
""",
    several=True,
)
