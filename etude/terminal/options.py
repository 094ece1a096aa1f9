"""Reads a command line by a table of flags: llama.cpp's names and environment variables, one clear error.

Written out instead of argparse because llama.cpp's rules differ: single-dash names of several letters
(`-ctk`), a value that may begin with a dash (`-p "- item"`), underscores for dashes, LLAMA_ARG_* variables
under every flag, and a sentence of our own for each flag that this program cannot serve. A flag beats its
variable; the last one wins.

    table of flags (flags.py) + argv + environment -> Options -> records that the rest of the program takes

This module must stay quick to import: `etude --help` may take 0.2 s, and nothing here needs numpy.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etude.records import EtudeError

Reader = Callable[[str], Any]
"""Text of a value -> the value. Raises ValueError with what is allowed."""

HELP_FLAGS = ("-h", "--help", "--usage")
TRUE_WORDS = ("on", "enabled", "true", "1")
FALSE_WORDS = ("off", "disabled", "false", "0")


class UsageError(EtudeError):
    """A command line that cannot be served. The program ends with exit code 2."""


class HelpWanted(Exception):
    """One of HELP_FLAGS stands on the command line."""


@dataclass(frozen=True)
class Flag:
    """One setting. Without `read` it is a switch: `names` set it, `off` clear it.

    key: its name in Options. bare: the value when the flag stands alone (a flag whose value is optional).
    repeated: values collect into a tuple. env: the variable that gives it too.
    """

    names: tuple[str, ...]
    key: str
    help: str
    read: Reader | None = None
    metavar: str = "N"
    default: Any = None
    off: tuple[str, ...] = ()
    env: str = ""
    bare: Any = None
    repeated: bool = False


@dataclass(frozen=True)
class Refusal:
    """Flags of llama.cpp that cannot be served, and why.

    A name may be a pattern (--spec-*). harmless: values that ask for what happens anyway ("" is the flag
    without a value); they are accepted.
    """

    names: tuple[str, ...]
    reason: str
    env: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    values: int = 0


@dataclass(frozen=True)
class Group:
    """Flags under one title of the help."""

    title: str
    flags: tuple[Flag, ...]


@dataclass(frozen=True)
class Verb:
    """What `etude NAME` takes. positional: key and metavar of the one word without a dash, or None; several:
    there may be more of them, and they collect into a tuple.
    """

    name: str
    summary: str
    usage: str
    groups: tuple[Group, ...]
    positional: tuple[str, str] | None = None
    refusals: tuple[Refusal, ...] = ()
    details: str = ""
    several: bool = False

    def flags(self) -> Iterator[Flag]:
        """All its flags, in the order of the help."""
        for group in self.groups:
            yield from group.flags


@dataclass(frozen=True)
class Options:
    """The values of a command line. written: for each key that the user gave, how (a flag or a variable)."""

    verb: Verb
    values: Mapping[str, Any]
    written: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def given(self, key: str) -> bool:
        """Whether the user wrote it, as a flag or as a variable."""
        return key in self.written

    def error(self, key: str, text: str) -> UsageError:
        """An error about one setting, beginning with how the user wrote it."""
        return UsageError(f"{self.written.get(key, key)}: {text}")

    def refuse_without_effect(self, keys: Sequence[str], text: str) -> None:
        """Raise for the first of `keys` that the user wrote: it would change nothing."""
        for key in keys:
            if self.given(key):
                raise self.error(key, text)

    def flag_named(self, name: str) -> Flag:
        """The flag of a name, with its dashes or without, as chat's /set is given it."""
        wanted = name.lstrip("-").replace("_", "-")
        known = {word.lstrip("-"): flag for flag in self.verb.flags() for word in flag.names}
        if wanted not in known:
            raise UsageError(f"there is no setting {name!r}{nearest(wanted, list(known))}")
        return known[wanted]

    def changed(self, flag: Flag, written: str, text: str) -> Options:
        """The options with one setting read anew; `written` is what its errors begin with."""
        value = _read(flag, written, text)
        values = {**self.values, flag.key: (value,) if flag.repeated else value}
        return Options(self.verb, values, {**self.written, flag.key: written})


def nearest(word: str, known: Sequence[str]) -> str:
    """'; did you mean X?' for the known word that looks most like `word`, or nothing."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def parse(verb: Verb, argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Defaults, then the environment, then the command line."""
    values = {flag.key: flag.default for flag in verb.flags()}
    if verb.positional:
        values.setdefault(verb.positional[0], None)
    options = Options(verb, values, {})
    return _from_argv(_from_environment(options, environ), argv)


def _from_environment(options: Options, environ: Mapping[str, str]) -> Options:
    """A variable that is set but empty counts as not set."""
    values, written = dict(options.values), dict(options.written)
    for refusal in options.verb.refusals:
        for name in (name for pattern in refusal.env for name in fnmatch.filter(environ, pattern)):
            if environ[name] and environ[name] not in refusal.harmless:
                raise UsageError(f"{name}={environ[name]} in the environment: {refusal.reason}")
    for flag in options.verb.flags():
        negated = flag.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_", 1)
        text = environ.get(flag.env) if flag.env else None
        if flag.off and flag.env and negated in environ:
            values[flag.key], written[flag.key] = False, negated
        elif text:
            shown = f"{flag.env} in the environment"
            value = _read(flag, shown, text) if flag.read else _truth(shown, text)
            values[flag.key] = (value,) if flag.repeated else value
            written[flag.key] = flag.env
    return Options(options.verb, values, written)


def _from_argv(options: Options, argv: Sequence[str]) -> Options:
    verb = options.verb
    values, written = dict(options.values), dict(options.written)
    flags = {name: flag for flag in verb.flags() for name in flag.names + flag.off}
    words = list(argv)
    flags_end = False
    from_argv: set[str] = set()
    while words:
        word = words.pop(0)
        if word == "--" and not flags_end:
            flags_end = True
            continue
        if flags_end or not word.startswith("-") or word == "-":
            _take_positional(verb, word, values, written, from_argv)
            continue
        name, attached = _split(word)
        if name in HELP_FLAGS:
            raise HelpWanted
        flag = flags.get(name)
        if flag is None:
            _refuse(_refusal(verb, name, word, flags), name, attached, words)
            continue
        if verb.positional == (flag.key, written.get(flag.key)) and not verb.several:
            raise UsageError(f"{name}: the {flag.key} was given already: {values[flag.key]!r}")
        value = _value(flag, name, attached, words)
        if flag.repeated and flag.key in from_argv:
            value = (*values[flag.key], value)
        elif flag.repeated:
            value = (value,)
        values[flag.key], written[flag.key] = value, name
        from_argv.add(flag.key)
    return Options(verb, values, written)


def _split(word: str) -> tuple[str, str | None]:
    """'--ctx_size=5' -> ('--ctx-size', '5'); short flags are taken as they are."""
    if not word.startswith("--"):
        return word, None
    name, equals, attached = word.partition("=")
    return name.replace("_", "-"), attached if equals else None


def _take_positional(
    verb: Verb, word: str, values: dict[str, Any], written: dict[str, str], from_argv: set[str]
) -> None:
    if verb.positional is None:
        raise UsageError(f"{word!r}: `etude {verb.name}` takes flags only")
    key, metavar = verb.positional
    if verb.several:
        values[key] = (*values[key], word) if key in from_argv else (word,)
        written[key] = metavar
        from_argv.add(key)
        return
    if written.get(key) == metavar:
        raise UsageError(
            f"{word!r}: one {metavar} is enough, {values[key]!r} came before (quote what has spaces)"
        )
    if written.get(key, "").startswith("-"):
        raise UsageError(f"{word!r}: the {key} was given already with {written[key]}")
    values[key], written[key] = word, metavar


def _refusal(verb: Verb, name: str, word: str, served: Iterable[str]) -> Refusal:
    """What is known of a flag that is not served."""
    patterns = {pattern: refusal for refusal in verb.refusals for pattern in refusal.names}
    for pattern, refusal in patterns.items():
        if fnmatch.fnmatchcase(name, pattern):
            return refusal
    raise UsageError(f"{word}: no such flag of `etude {verb.name}`{nearest(name, [*served, *patterns])}")


def _refuse(refusal: Refusal, name: str, attached: str | None, words: list[str]) -> None:
    """Raise, unless the value asks for what happens anyway."""
    value = attached if attached is not None else "".join(words[: refusal.values])
    if value in refusal.harmless:
        del words[: 0 if attached is not None else refusal.values]
        return
    raise UsageError(f"{name}: {refusal.reason}")


def _value(flag: Flag, name: str, attached: str | None, words: list[str]) -> Any:
    if flag.read is None:
        if attached is not None:
            return _truth(name, attached) == (name in flag.names)
        return name in flag.names
    if attached is not None:
        return _read(flag, name, attached)
    if flag.bare is not None and (not words or words[0] not in (*TRUE_WORDS, *FALSE_WORDS, "auto")):
        return flag.bare
    if not words:
        raise UsageError(f"{name}: a value is missing ({name} {flag.metavar})")
    return _read(flag, name, words.pop(0))


def _read(flag: Flag, shown: str, text: str) -> Any:
    if flag.read is None:
        return _truth(shown, text)
    try:
        return flag.read(text)
    except ValueError as error:
        raise UsageError(f"{shown}: got {text!r}, {error}") from None


def _truth(shown: str, text: str) -> bool:
    if text in TRUE_WORDS + FALSE_WORDS:
        return text in TRUE_WORDS
    raise UsageError(f"{shown}: got {text!r}, allowed is on or off")


# ---- readers of values: text in, value out, ValueError says what is allowed


def integer(low: int, high: int = 2**31 - 1, also: Mapping[int, str] | None = None) -> Reader:
    """Whole numbers from `low` to `high`, and those of `also` with what they mean."""
    special = also or {}
    allowed = f"allowed is a whole number from {low}" + (f" to {high}" if high < 2**31 - 1 else "")
    allowed += "".join(f", or {number} ({meaning})" for number, meaning in special.items())

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,19}", text.strip()):
            raise ValueError(allowed)
        number = int(text)
        if number not in special and not low <= number <= high:
            raise ValueError(allowed)
        return number

    return read


def real(
    low: float, high: float = float("inf"), *, above: bool = False, also: Sequence[float] = ()
) -> Reader:
    """Numbers from `low` (`above`: greater than it) to `high`, and those of `also`."""
    allowed = f"allowed is a number {'above' if above else 'from'} {low:g}" + (
        f" to {high:g}" if high < 1e300 else ""
    )
    allowed += "".join(f", or {number:g}" for number in also)

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError(allowed) from None
        # NaN fails both comparisons; infinity is never meant
        inside = low <= number <= high and not (above and number == low) and number != float("inf")
        if number not in also and not inside:
            raise ValueError(allowed)
        return number

    return read


def choice(*words: str) -> Reader:
    """One of `words`."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"allowed is {', '.join(words[:-1])} or {words[-1]}{nearest(text, words)}")
        return text

    return read


def on_off_auto(text: str) -> bool | None:
    """on -> True, off -> False, auto -> None; llama.cpp's other spellings too."""
    if text in ("auto", "-1"):
        return None
    if text not in TRUE_WORDS + FALSE_WORDS:
        raise ValueError("allowed is on, off or auto")
    return text in TRUE_WORDS


def filled(text: str) -> str:
    """Any text but the empty one."""
    if not text:
        raise ValueError("allowed is anything but nothing")
    return text


def integers(low: int, high: int = 2**31 - 1) -> Reader:
    """Whole numbers separated by commas, as a tuple (llama-bench's lists)."""
    one = integer(low, high)
    return lambda text: tuple(one(part) for part in text.split(","))
