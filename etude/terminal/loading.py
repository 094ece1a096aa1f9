"""Flags → a loaded engine, and how to talk to it: chat template, adapter, prompt cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from etude.engine.engine import Engine
from etude.engine.machine import usable_cores
from etude.model.chat import ChatTemplate
from etude.model.rope import RopeOverrides
from etude.model.thinking import ThinkingStream, ThinkingTags
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError
from etude.terminal.conversation import Conversation
from etude.terminal.model import model_path
from etude.terminal.options import Options
from etude.terminal.sampling import read_text
from etude.terminal.text_source import system_text

ADAPTER = "lora"
_TEMPLATE_FLAGS = ("chat_template", "chat_template_file", "chat_template_kwargs")
_THINKING_FLAGS = (
    "reasoning", "reasoning_effort", "reasoning_budget", "reasoning_budget_message", "reasoning_format",
)  # fmt: skip
_CHAT_FLAGS = (*_TEMPLATE_FLAGS, *_THINKING_FLAGS, "system_prompt", "system_prompt_file")


@dataclass(frozen=True)
class Loaded:
    """An engine and how to talk to its model. template None completes; tags None tells no thinking apart."""

    engine: Engine
    template: ChatTemplate | None
    variables: dict[str, Any]
    system: str | None
    tags: ThinkingTags | None
    adapter: str | None
    adapter_scale: float

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    def conversation(self) -> Conversation:
        """A new one."""
        return Conversation(
            self.tokenizer, self.template, system=self.system, variables=self.variables, tags=self.tags
        )

    def splitter(self, prompt_ids: tuple[int, ...]) -> ThinkingStream | None:
        """What tells thinking from the answer to a prompt, which may have begun the thinking."""
        if self.tags is None:
            return None
        return ThinkingStream(self.tags, opened=ends_open(self.tokenizer, prompt_ids, self.tags))


def ends_open(tokenizer: Tokenizer, prompt_ids: tuple[int, ...], tags: ThinkingTags) -> bool:
    """Whether a prompt ends with the tag that begins thinking."""
    return tokenizer.decode(prompt_ids[-32:], special=True).rstrip().endswith(tags.open)


@contextmanager
def open_model(options: Options) -> Iterator[Loaded]:
    """The model of the command line, for as long as the block runs. Writes the prompt cache at its end."""
    _check_early(options)
    with open_engine(options, model_path(options)) as engine:
        template = _template(options, engine)
        loaded = Loaded(
            engine=engine,
            template=template,
            variables=_variables(options, template),
            system=_system(options, template),
            tags=_tags(options, template),
            adapter=_load_adapter(options, engine),
            adapter_scale=_adapter(options)[1],
        )
        if options["prompt_cache"] and Path(options["prompt_cache"]).exists():
            engine.load_cache(options["prompt_cache"])
        if options["warmup"]:
            engine.generate([[0]], max_tokens=1)
        yield loaded


def open_engine(
    options: Options,
    path: Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    cache_tokens: int | None = None,
    sequences: int = 1,
    parallel: int | None = None,
    weight_type: str | None = None,
) -> Engine:
    """Load a model. The sizes are the bench's; without them, the flags say. parallel: the server's -np.
    weight_type: what its matrices are converted to."""
    _bind_to_cpus(options)
    values = options.values
    threads = threads or (values["threads"] if isinstance(values["threads"], int) else None)
    _check_threads(options, threads)
    context = values.get("ctx_size") if context is None else context
    overrides = {field.name: values.get(field.name) for field in fields(RopeOverrides)}
    most = max(sequences, parallel or 1)
    return Engine.load(
        path,
        threads=threads,
        context=context,
        weight_type=weight_type,
        cache_type_k=values["cache_type_k"],
        cache_type_v=values["cache_type_v"],
        cache_tokens=cache_tokens,
        rope=RopeOverrides(**overrides) if any(value is not None for value in overrides.values()) else None,
        step_tokens=values["ubatch_size"] or max(512, 2 * most),
        max_sequences=parallel or (most if most > 256 else None),
        context_shift=values.get("context_shift", False),
        keep=values.get("keep", 0),
    )


def save_prompt(
    options: Options, engine: Engine, prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...]
) -> None:
    """--prompt-cache: the prompt, and with --prompt-cache-all what was answered, for the next start."""
    if options["prompt_cache"] and not options["prompt_cache_ro"]:
        ids = prompt_ids + (answer_ids if options["prompt_cache_all"] else ())
        engine.save_cache(options["prompt_cache"], ids[: engine.context - 1])


def cpu_name() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine


# ── checks before anything is loaded ──


def _check_early(options: Options) -> None:
    """What would have no effect is said before a large file is read."""
    if not options["context_shift"]:
        options.refuse_without_effect(("keep",), "no effect without --context-shift")
    if options["prompt_cache"] is None:
        options.refuse_without_effect(
            ("prompt_cache_all", "prompt_cache_ro"), "no effect without --prompt-cache FILE"
        )
    elif options["prompt_cache_ro"]:
        options.refuse_without_effect(
            ("prompt_cache_all",), "no effect with --prompt-cache-ro, which writes nothing"
        )
        if not Path(options["prompt_cache"]).exists():
            raise options.error(
                "prompt_cache", f"{options['prompt_cache']!r} does not exist, and nothing is to be written"
            )
    if options["conversation"] is False:
        options.refuse_without_effect(_CHAT_FLAGS, "no effect with -no-cnv, which applies no chat template")
    if options["reasoning_format"] == "none":
        options.refuse_without_effect(("reasoning_budget",), "no effect with --reasoning-format none")
    if options["reasoning_budget"] < 0:
        options.refuse_without_effect(("reasoning_budget_message",), "no effect without --reasoning-budget N")
    _adapter(options)


def _check_threads(options: Options, threads: int | None) -> None:
    batch = options.values.get("threads_batch")
    if batch is not None and batch != (threads or usable_cores()):
        raise options.error(
            "threads_batch",
            f"got {batch}, but prompts and answers are computed in the same steps by the same "
            f"{threads or usable_cores()} threads; leave it out or change -t",
        )


def _bind_to_cpus(options: Options) -> None:
    """-C and -Cr: this process and its threads run on these CPUs only."""
    cpus = _cpus(options)
    if not cpus:
        return
    key = "cpu_mask" if options["cpu_mask"] else "cpu_range"
    if not hasattr(os, "sched_setaffinity"):
        raise options.error(key, "this system does not let a process choose its CPUs; leave it out")
    there = os.sched_getaffinity(0)
    if not cpus & there:
        raise options.error(key, f"got {options[key]!r}, this process may run on CPUs {sorted(there)}")
    os.sched_setaffinity(0, cpus & there)


def _cpus(options: Options) -> set[int]:
    """CPUs of the mask and of the range, together."""
    cpus: set[int] = set()
    if options["cpu_mask"]:
        try:
            mask = int(options["cpu_mask"], 16)
        except ValueError:
            mask = 0
        if not 0 < mask < 1 << 4096:
            raise options.error(
                "cpu_mask", f"got {options['cpu_mask']!r}, allowed is a hexadecimal mask such as 0xff"
            )
        cpus |= {cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1}
    if options["cpu_range"]:
        low, dash, high = options["cpu_range"].partition("-")
        if not (dash and low.isdecimal() and high.isdecimal() and int(low) <= int(high) < 4096):
            raise options.error("cpu_range", f"got {options['cpu_range']!r}, allowed is LOW-HIGH such as 0-3")
        cpus |= set(range(int(low), int(high) + 1))
    return cpus


# ── chat template ──


def _template(options: Options, engine: Engine) -> ChatTemplate | None:
    """The one of the flags, else the model's own; None completes."""
    if options["conversation"] is False:
        return None
    given = given_template(options)
    template = engine.chat if given is None else given.for_model(engine.tokenizer.metadata)
    if template is None:
        text = "this is a base model without a chat template: it completes text; --chat-template gives it one"
        options.refuse_without_effect(_CHAT_FLAGS, text)
        if options["conversation"]:
            raise options.error("conversation", text)
    return template


def given_template(options: Options) -> ChatTemplate | None:
    """The template of the flags."""
    name, file = options["chat_template"], options["chat_template_file"]
    if file is not None:
        if name is not None:
            raise options.error("chat_template_file", "a template was given already with --chat-template")
        return ChatTemplate(read_text(options, "chat_template_file"))
    if name is None:
        return None
    return ChatTemplate(name) if "{%" in name or "{{" in name else ChatTemplate.builtin(name)


def _variables(options: Options, template: ChatTemplate | None) -> dict[str, Any]:
    """Variables of the template, which must read them."""
    variables = template_kwargs(options)
    if options["reasoning"] is not None:
        variables["enable_thinking"] = options["reasoning"]
    if options["reasoning_effort"] != "default":
        variables["reasoning_effort"] = options["reasoning_effort"]
    for name in variables:
        if template is not None and name not in template.variables:
            key = {"enable_thinking": "reasoning", "reasoning_effort": "reasoning_effort"}.get(name, "")
            key = key if options.given(key) else "chat_template_kwargs"
            known = ", ".join(sorted(template.variables)) or "none"
            raise options.error(
                key, f"the chat template of this model reads no variable {name!r}; it reads: {known}"
            )
    return variables


def template_kwargs(options: Options) -> dict[str, Any]:
    """--chat-template-kwargs."""
    text = options["chat_template_kwargs"]
    if text is None:
        return {}
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise options.error(
            "chat_template_kwargs", f'got {text!r}, allowed is a JSON object such as {{"key": "value"}}'
        )
    return record


def _system(options: Options, template: ChatTemplate | None) -> str | None:
    return system_text(options) if template is not None else None


def _tags(options: Options, template: ChatTemplate | None) -> ThinkingTags | None:
    """What the model writes around its thinking, if it is to be told apart."""
    if template is None or options["reasoning_format"] == "none":
        return None
    return template.tags or ThinkingTags()


# ── LoRA ──


def _adapter(options: Options) -> tuple[str | None, float]:
    """File and scale of the one adapter."""
    given = adapters(options)
    if len(given) > 1:
        key = "lora_scaled" if options["lora_scaled"] else "lora"
        raise options.error(key, "an answer is given with one adapter at a time; give one, or merge them")
    return given[0] if given else (None, 1.0)


def adapters(options: Options) -> list[tuple[str, float]]:
    """Files and scales of all adapters."""
    plain = [(part, 1.0) for text in options["lora"] for part in text.split(",")]
    return plain + [_scaled(options, part) for text in options["lora_scaled"] for part in text.split(",")]


def _scaled(options: Options, text: str) -> tuple[str, float]:
    file, colon, scale = text.rpartition(":")
    try:
        if file and colon:
            return file, float(scale)
    except ValueError:
        pass
    raise options.error("lora_scaled", f"got {text!r}, allowed is FILE:SCALE such as adapter.gguf:0.5")


def _load_adapter(options: Options, engine: Engine) -> str | None:
    file, _ = _adapter(options)
    if file is None:
        return None
    if not Path(file).exists():
        raise EtudeError(f"no file or folder {file!r} with a LoRA adapter")
    engine.load_adapter(ADAPTER, file)
    return ADAPTER
