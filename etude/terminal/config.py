"""A config file and dotted overrides → a frozen record of settings, and which of them the user wrote.

    etude grpo examples/add.toml --optimizer.learning_rate 2e-5 --run.steps 40

The types are the dataclasses' own, read by jsonargparse. A name that does not exist is refused with the
nearest one. What was written is kept, because a written setting without effect is an error, while a default
without effect is not.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from etude.terminal.options import HELP_FLAGS, HelpWanted, UsageError, nearest

Config = TypeVar("Config")


@dataclass(frozen=True)
class Configured(Generic[Config]):
    """What was read. written: dotted name → where ("add.toml", "--run.steps"). flags: words such as
    --dry-run, with their values."""

    config: Config
    written: Mapping[str, str]
    flags: Mapping[str, str]


def read_config(
    config_type: type[Config], argv: Sequence[str], flags: Mapping[str, bool]
) -> Configured[Config]:
    """argv: at most one file, overrides, and the verb's own `flags` (name → whether a value follows).

    UsageError for what cannot be read; HelpWanted for --help.
    """
    known = dict(leaves(config_type))
    path, overrides, given = _sorted_words(argv, flags)
    written: dict[str, str] = {}
    if path is not None:
        for name in _names_in(_read_toml(path)):
            _check_known(name, known, f"{path}: {name}")
            written[name] = path
    for name, _ in overrides:
        _check_known(name, known, f"--{name}")
        written[name] = f"--{name}"
    parser = ArgumentParser(exit_on_error=False, parser_mode="toml", allow_abbrev=False)
    parser.add_class_arguments(config_type)
    parser.add_argument("--config", action="config")
    words = [] if path is None else [f"--config={path}"]
    try:
        read = parser.instantiate(parser.parse_args([*words, *(f"--{n}={v}" for n, v in overrides)]))
    except ArgumentError as error:
        raise UsageError(_shortened(str(error))) from None
    values = {field.name: read[field.name] for field in fields(config_type)}  # type: ignore[arg-type]  # a dataclass
    return Configured(config_type(**values), written, given)


def leaves(record: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings of a record and of the records in it, with their types.

    >>> from etude.train.settings import EvalSettings
    >>> [name for name, _ in leaves(EvalSettings)][:2]
    ['every', 'samples']
    """
    hints = get_type_hints(record)
    for field in fields(record):
        inner = [kind for kind in (hints[field.name], *get_args(hints[field.name])) if is_dataclass(kind)]
        if inner:
            yield from leaves(inner[0], f"{prefix}{field.name}.")  # type: ignore[arg-type]  # a dataclass
        else:
            yield prefix + field.name, hints[field.name]


def _sorted_words(
    argv: Sequence[str], flags: Mapping[str, bool]
) -> tuple[str | None, list[tuple[str, str]], dict[str, str]]:
    """(config file, overrides, flags) of a command line."""
    path: str | None = None
    overrides: list[tuple[str, str]] = []
    given: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in HELP_FLAGS:
            raise HelpWanted
        if not word.startswith("--"):
            if path is not None:
                raise UsageError(f"{word!r}: one config file is enough, {path!r} came before")
            path = word
            continue
        name, equals, value = word[2:].partition("=")
        wants_value = flags.get(name, True)
        if wants_value and not equals:
            if not words:
                raise UsageError(f"--{name}: a value is missing")
            value = words.pop(0)
        if not wants_value and equals:
            raise UsageError(f"--{name} takes no value")
        if name in flags:
            given[name] = value
        else:
            overrides.append((name.replace("-", "_") if "." not in name else name, value))
    return path, overrides, given


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the config {path!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from None


def _names_in(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of what stands in a file; a table without entries counts as one."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _names_in(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _check_known(name: str, known: Mapping[str, Any], shown: str) -> None:
    """UsageError unless it is a setting, an entry of one that is a mapping, or a table of settings."""
    if name in known or any(setting.startswith(f"{name}.") for setting in known):
        return
    parts = name.split(".")
    for end in range(1, len(parts)):
        kind = known.get(".".join(parts[:end]))
        if kind is not None and any(_is_mapping(one) for one in (kind, *get_args(kind))):
            return
    raise UsageError(f"{shown}: no such setting{nearest(name, list(known)) or _by_last_part(name, known)}")


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _by_last_part(name: str, known: Mapping[str, Any]) -> str:
    """A setting of the same name in another table: `steps` → run.steps."""
    last = name.rpartition(".")[2]
    same = [setting for setting in known if setting.rpartition(".")[2] == last]
    return f"; did you mean {same[0]}?" if same else f"; settings: {', '.join(known)}"


def _shortened(text: str) -> str:
    """jsonargparse's message in one line."""
    return re.sub(r"\s+", " ", text.replace('Parser key "', "").replace('":', ":")).strip()
