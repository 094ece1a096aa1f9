"""llama.cpp's flags that Etude cannot serve, each with the sentence that says why (build 11434).

A flag that would have no effect is an error, not a shrug: whoever writes `-ngl 99` believes that a GPU helps.
Where a value asks for what happens anyway (`-ngl 0`, `-fa on`, `--repack`) it is accepted.
"""

from __future__ import annotations

from etude.terminal.options import FALSE_WORDS, TRUE_WORDS, Refusal

_GPU = "there is no GPU build: everything is computed on the CPU; leave it out"
_DRAFT = "there is no speculative decoding, so no draft model; leave it out"
_MEDIA = "there is no image, audio or video input; only text models run"
_LOG = "there is no log; what goes wrong is said on the error output"
_EXPERTS = "mixture-of-experts models are not supported"
_INTERACTIVE = "there is one interactive mode, `etude chat`, and it needs no such flag"
_ON = ("", *TRUE_WORDS, "auto", "-1")
_OFF = ("", *FALSE_WORDS)

GPU = (
    Refusal(("-ngl", "--gpu-layers", "--n-gpu-layers"), _GPU, ("LLAMA_ARG_N_GPU_LAYERS",), ("0", "auto"), 1),
    Refusal(("-dev", "--device"), _GPU, ("LLAMA_ARG_DEVICE",), ("none",), 1),
    Refusal(("-sm", "--split-mode"), _GPU, ("LLAMA_ARG_SPLIT_MODE",), ("none",), 1),
    Refusal(("-ts", "--tensor-split"), _GPU, ("LLAMA_ARG_TENSOR_SPLIT",), (), 1),
    Refusal(("-mg", "--main-gpu"), _GPU, ("LLAMA_ARG_MAIN_GPU",), (), 1),
    Refusal(("-kvo", "--kv-offload", "--op-offload"), _GPU, ("LLAMA_ARG_KV_OFFLOAD",), FALSE_WORDS),
    Refusal(("-nkvo", "--no-kv-offload", "--no-op-offload", "--no-host"), _GPU, ("LLAMA_ARG_NO_HOST",),
            ("", *TRUE_WORDS)),
    Refusal(("-fit", "--fit"), _GPU, ("LLAMA_ARG_FIT",), FALSE_WORDS, 1),
    Refusal(("-fitt", "--fit-target", "-fitc", "--fit-ctx"), _GPU, ("LLAMA_ARG_FIT_TARGET",
            "LLAMA_ARG_FIT_CTX"), (), 1),
    Refusal(("-ot", "--override-tensor"), _GPU, ("LLAMA_ARG_OVERRIDE_TENSOR",), (), 1),
    Refusal(("-bs", "--backend-sampling"), _GPU, ("LLAMA_ARG_BACKEND_SAMPLING",), FALSE_WORDS),
    Refusal(("--list-devices", "--rpc"), _GPU, ("LLAMA_ARG_RPC",)),
)  # fmt: skip

MEMORY = (
    Refusal(("-fa", "--flash-attn"),
            "attention is always computed in one pass (as with -fa on); there is no other way",
            ("LLAMA_ARG_FLASH_ATTN",), _ON, 1),
    Refusal(("--swa-full",), "windowed layers always keep all positions", ("LLAMA_ARG_SWA_FULL",), ("",
            *TRUE_WORDS)),
    Refusal(("-b", "--batch-size"),
            "prompts are computed in pieces of -ub tokens and there is no second batch size; "
            "use -ub", ("LLAMA_ARG_BATCH",), (), 1),
    Refusal(("-np", "--parallel"),
            "there are no slots: `etude generate --samples N` completes a prompt N times at once",
            ("LLAMA_ARG_N_PARALLEL",), ("1", "-1"), 1),
    Refusal(("-kvu", "--kv-unified"), "one cache serves all sequences", ("LLAMA_ARG_KV_UNIFIED",), ("",
            *TRUE_WORDS)),
    Refusal(("-no-kvu", "--no-kv-unified"), "one cache serves all sequences; it cannot be split"),
    Refusal(("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"),
            "the cache keeps every prefix by itself and has no "
            "checkpoints", ("LLAMA_ARG_CTX_CHECKPOINTS",), (), 1),
    Refusal(("-cram", "--cache-ram"), "computed prefixes stay in the one cache, whose size follows from -c",
            ("LLAMA_ARG_CACHE_RAM",), (), 1),
    Refusal(("-dt", "--defrag-thold"), "the cache has pages and nothing to defragment",
            ("LLAMA_ARG_DEFRAG_THOLD",),
            (), 1),
    Refusal(("-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"),
            "there is no self-extend; longer contexts go by --rope-scaling",
            ("LLAMA_ARG_GRP_ATTN_N", "LLAMA_ARG_GRP_ATTN_W"), (), 1),
    Refusal(("--repack",), "weights are always repacked while loading", ("LLAMA_ARG_REPACK",), ("",
            *TRUE_WORDS)),
    Refusal(("-nr", "--no-repack"),
            "weights are always repacked while loading; the kernels read no other layout"),
    Refusal(("-lm", "--load-mode"), "the file is mapped, repacked into ordinary memory and let go",
            ("LLAMA_ARG_LOAD_MODE",), ("auto", "mmap"), 1),
    Refusal(("--mlock",), "the weights lie in ordinary memory and are not locked; leave it out",
            ("LLAMA_ARG_MLOCK",)),
    Refusal(("--mmap",), "the file is mapped while loading", ("LLAMA_ARG_MMAP",), ("", *TRUE_WORDS)),
    Refusal(("--no-mmap",), "the file is mapped while loading only, so nothing stays mapped; leave it out"),
    Refusal(("-lzm", "--lazy-mode"), "every tensor is loaded at the start", ("LLAMA_ARG_LAZY_MODE",),
            ("off", "auto"), 1),
    Refusal(("--check-tensors",), "tensor data is not searched for invalid values; leave it out"),
    Refusal(("--override-kv",), "metadata is taken as the file says; change the file instead", (), (), 1),
    Refusal(("-cmoe", "--cpu-moe"), _EXPERTS, ("LLAMA_ARG_CPU_MOE",)),
    Refusal(("-ncmoe", "--n-cpu-moe"), _EXPERTS, ("LLAMA_ARG_N_CPU_MOE",), ("0",), 1),
    Refusal(("-ncffn", "--n-cpu-ffn"), _GPU, ("LLAMA_ARG_N_CPU_FFN",), (), 1),
)  # fmt: skip

THREADS = (
    Refusal(("--numa",), "threads and memory are placed by the system; choose CPUs with -C or -Cr",
            ("LLAMA_ARG_NUMA",), (), 1),
    Refusal(("--prio", "--prio-batch"), "the priority is not changed; start it with `nice`", (), ("0",), 1),
    Refusal(("--poll", "--poll-batch"), "threads spin briefly and then sleep; that cannot be set", (), (), 1),
    Refusal(("--cpu-strict", "--cpu-strict-batch"), "threads move freely among the CPUs of -C or -Cr", (),
            ("0",), 1),
    Refusal(("-Cb", "--cpu-mask-batch", "-Crb", "--cpu-range-batch"),
            "the same threads compute prompts and answers; "
            "use -C or -Cr", (), (), 1),
)  # fmt: skip

MEDIA = (
    Refusal(("-mm", "--mmproj", "-mmu", "--mmproj-url", "-mmdev", "--mmproj-device"), _MEDIA,
            ("LLAMA_ARG_MMPROJ", "LLAMA_ARG_MMPROJ_URL"), (), 1),
    Refusal(("--mmproj-auto", "--mmproj-offload"), _MEDIA, ("LLAMA_ARG_MMPROJ_AUTO",
            "LLAMA_ARG_MMPROJ_OFFLOAD"),
            FALSE_WORDS),
    Refusal(("--no-mmproj", "--no-mmproj-auto", "--no-mmproj-offload"), _MEDIA, (), ("",)),
    Refusal(("--image", "--audio", "--video", "--image-min-tokens", "--image-max-tokens", "--video-fps",
             "--video-timestamp-interval", "--video-ffmpeg-dir"), _MEDIA,
            ("LLAMA_ARG_IMAGE_*", "LLAMA_ARG_VIDEO_*")),
)  # fmt: skip

DRAFT = (
    Refusal(("-md", "-hfd", "-hfrd", "-td", "-tbd", "-ngld", "-devd", "-ctkd", "-ctvd", "-otd", "-cmoed",
             "-ncmoed", "-Cd", "-Crd", "-Cbd", "-Crbd", "-lcs", "--lookup-cache-static", "-lcd",
             "--lookup-cache-dynamic", "--draft", "--draft-*", "--spec-*", "--no-spec-*", "--*-draft"),
             _DRAFT,
            ("LLAMA_ARG_SPEC_*", "LLAMA_ARG_DRAFT_*", "LLAMA_ARG_*_DRAFT")),
)  # fmt: skip

SOURCES = (
    Refusal(("-mu", "--model-url"),
            "models come from files, `etude pull` or -hf; download the file and give it with -m",
            ("LLAMA_ARG_MODEL_URL",)),
    Refusal(("-dr", "--docker-repo"), "models come from files, `etude pull` or -hf, not from Docker Hub",
            ("LLAMA_ARG_DOCKER_REPO",)),
    Refusal(("-hft", "--hf-token"),
            "a token on the command line is seen by every user of the machine; set HF_TOKEN"),
    Refusal(("--server-base",), "this program runs the model itself and connects to no server"),
    Refusal(("--control-vector", "--control-vector-scaled", "--control-vector-layer-range"),
            "there are no control "
            "vectors; leave it out"),
    Refusal(("-cl", "--cache-list"), "the names of models and where they lie: `etude pull --help`"),
    Refusal(("--*-default",), "there are no such short names; name the model with -m or -hf"),
    Refusal(("--completion-bash",), "there is no completion script"),
)  # fmt: skip

TEXT = (
    Refusal(("--jinja",), "every template is rendered by jinja2", ("LLAMA_ARG_JINJA",), ("", *TRUE_WORDS)),
    Refusal(("--no-jinja",),
            "every template is rendered by jinja2; --chat-template NAME takes a built-in one",
            ("LLAMA_ARG_NO_JINJA",)),
    Refusal(("--skip-chat-parsing",), "use --reasoning-format none", ("LLAMA_ARG_SKIP_CHAT_PARSING",),
            FALSE_WORDS),
    Refusal(("--no-skip-chat-parsing",), "", (), ("",)),
    Refusal(("--reasoning-preserve", "--no-reasoning-preserve"),
            "the template decides whether earlier thinking stays; "
            "give its own variable with --chat-template-kwargs", ("LLAMA_ARG_REASONING_PRESERVE",)),
    Refusal(("--adaptive-target", "--adaptive-decay"), "there is no adaptive-p sampler; leave it out"),
    Refusal(("-i", "--interactive", "-if", "--interactive-first", "-ins", "--instruct"), _INTERACTIVE),
    Refusal(("--in-prefix", "--in-suffix", "--in-prefix-bos"),
            "the chat template says what stands around a message; "
            "give another one with --chat-template-file"),
    Refusal(("-bf", "--binary-file"), "prompts are text; give the file with -f", (), (), 1),
    Refusal(("-ptc", "--print-token-count"),
            "tokens are counted in the line after each answer and by /tokens", (), (), 1),
    Refusal(("--perf",), "the speed is in the line after each answer; see --show-timings", ("LLAMA_ARG_PERF",
            ), FALSE_WORDS),
    Refusal(("--no-perf",), "use --no-show-timings"),
    Refusal(("--log-disable",), _LOG, (), ("",)),
    Refusal(("--log-file", "--log-jsonl", "--log-colors", "--log-prefix", "--log-timestamps",
            "--log-prompts-dir",
             "-lv", "--verbosity", "--log-verbosity"), _LOG, ("LLAMA_ARG_LOG_*",)),
    Refusal(("-v", "--verbose", "--log-verbose"), _LOG),
    Refusal(("--no-log-jsonl", "--no-log-prefix", "--no-log-timestamps"), _LOG, (), ("",)),
)  # fmt: skip

RUNNING = GPU + MEMORY + THREADS + MEDIA + DRAFT + SOURCES + TEXT
"""For generate."""

CHAT = (
    *RUNNING,
    Refusal(("--display-prompt",), "at a terminal the first message is always shown"),
    Refusal(("--no-display-prompt",), "", (), ("",)),
)
"""For chat."""

BENCH = (
    *(each for each in GPU + MEMORY + THREADS + DRAFT if not {"-b", "-np"} & set(each.names)),
    Refusal(("-b", "--batch-size"),
            "prompts are computed in pieces of -ub tokens; there is no second batch size",
            ("LLAMA_ARG_BATCH",), (), 1),
    Refusal(("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"),
            "fetch it first: `etude pull hf:USER/REPO:QUANT`"),
    Refusal(("-oe", "--output-err", "--delay"),
            "there is no such setting; redirect the output, or run it again"),
)  # fmt: skip
"""For bench."""
