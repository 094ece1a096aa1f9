"""Names of rewards, as they stand in a config or on a command line → rewards.

math   format   choice   text   length?target=50   overlong?max_length=64&cache=16   reasoning_gym
math?parse=lenient&form=boxed     options, as in a URL
my_rewards.py:polite              a function of one's own file
package.module:name               … or of an importable module
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

from etude.records import EtudeError
from etude.rewards.choice import choice_reward
from etude.rewards.format import format_reward
from etude.rewards.gym import gym_reward
from etude.rewards.length import length_reward, overlong_reward
from etude.rewards.math import math_reward
from etude.rewards.reward import TIMEOUT_S, Judge, Reward, combine, judge_of
from etude.rewards.text import text_reward

BUILTIN: Mapping[str, Callable[..., Reward]] = {
    "math": math_reward,
    "format": format_reward,
    "choice": choice_reward,
    "text": text_reward,
    "length": length_reward,
    "overlong": overlong_reward,
    "reasoning_gym": gym_reward,
}
_NOT_OPTIONS = ("pool",)


def load_reward(name: str, *, timeout_s: float = TIMEOUT_S) -> Judge:
    """The reward of that name. timeout_s: how long a call of a user's function may take; the built-in ones
    keep limits of their own. EtudeError for what does not exist or does not fit."""
    bare, _, query = name.partition("?")
    options = read_options(name, query)
    if ":" in bare:
        where, _, attribute = bare.rpartition(":")
        function = load_function(where, attribute)
        if options:
            _check_options(name, function, options, skip=2)
            function = functools.partial(function, **options)
        return judge_of(function, attribute, timeout_s=timeout_s)
    if bare not in BUILTIN:
        near = difflib.get_close_matches(bare, BUILTIN, 1)
        raise EtudeError(
            f"there is no reward {bare!r}{f'; did you mean {near[0]}?' if near else ''} Rewards: "
            f"{', '.join(BUILTIN)}, or file.py:name for a function of your own"
        )
    make = BUILTIN[bare]
    _check_options(name, make, options)
    missing = [
        parameter.name
        for parameter in inspect.signature(make).parameters.values()
        if parameter.default is parameter.empty and parameter.name not in options
    ]
    if missing:
        raise EtudeError(f"{name}: say {missing[0]}, as in {bare}?{missing[0]}=…")
    return judge_of(make(**options), bare, timeout_s=None)


def load_rewards(weights: Mapping[str, float]) -> Judge:
    """Several rewards by name, with their weights; parts are called by their names without options, as far as
    these differ.

    >>> load_rewards({"math?parse=strict": 1.0, "math?parse=lenient": 0.0, "format": 1.0}).name
    'math?parse=strict+math?parse=lenient+format'
    """
    judges = {name: load_reward(name) for name in weights}
    short = [judge.name for judge in judges.values()]
    if len(judges) == 1 and list(weights.values()) == [1.0]:
        return next(iter(judges.values()))
    named = {
        judge.name if short.count(judge.name) == 1 else name: (judge, weights[name])
        for name, judge in judges.items()
    }
    return combine(
        {name: judge for name, (judge, _) in named.items()},
        {name: weight for name, (_, weight) in named.items()},
    )


def read_options(name: str, query: str) -> dict[str, Any]:
    """'a=1&b=x' → {"a": 1, "b": "x"}."""
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True)
    except ValueError:
        raise EtudeError(f"{name}: cannot read {query!r}; options look like ?key=value&key=value") from None
    return {key: _value(text) for key, text in pairs}


def load_function(where: str, attribute: str) -> Callable[..., Any]:
    """A function out of a file or a module."""
    path = Path(where).expanduser()
    if path.suffix == ".py" or path.is_file():
        module = _load_file(path)
    else:
        try:
            module = importlib.import_module(where)
        except Exception as error:  # a stranger's module fails in any way
            raise EtudeError(f"cannot import {where!r}: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        near = difflib.get_close_matches(attribute, names, 1) or names[:5]
        raise EtudeError(f"{where} has no function {attribute!r}; it has: {', '.join(near) or 'none'}")
    return function  # type: ignore[no-any-return]  # checked by judge_of


def _load_file(path: Path) -> ModuleType:
    """Run a Python file as a module; what lies beside it can be imported by it."""
    if not path.is_file():
        raise EtudeError(f"there is no file {str(path)!r} (a reward of your own is named file.py:name)")
    path = path.resolve()
    name = f"etude_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise EtudeError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _check_options(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], *, skip: int = 0
) -> None:
    """Every option must be a parameter; a value of the wrong kind is refused where that is declared."""
    parameters = dict(list(inspect.signature(function).parameters.items())[skip:])
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    allowed = [key for key in parameters if key not in _NOT_OPTIONS]
    for key, value in options.items():
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise EtudeError(f"{name}: no option {key!r}{hint} Options: {', '.join(allowed) or 'none'}")
        annotation = str(parameters[key].annotation)
        choices = {"Parse": ("strict", "lenient"), "Form": ("any", "tag", "boxed", "hashes", "whole")}
        if annotation in choices and value not in choices[annotation]:
            raise EtudeError(f"{name}: got {key}={value!r}, allowed are {', '.join(choices[annotation])}")
        kinds: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float)}
        if annotation in kinds and not isinstance(value, kinds[annotation]):
            raise EtudeError(f"{name}: got {key}={value!r}, allowed is a value of type {annotation}")


def _value(text: str) -> Any:
    """A number, true, false, or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
