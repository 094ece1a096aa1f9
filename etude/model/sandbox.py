"""Runs a chat template, a program out of a stranger's file, with limits on its time, memory and reach.

Jinja's own sandbox keeps a template from Python's internals and bounds `range`, but not what it computes:
nested loops run for hours, `"a" * 10**9` or a replacement inside a replacement fills the memory, and no
signal or thread can stop the C code that does it. Here every growing operation is checked before it is made:

- each turn of a loop, call of a macro, printed value and call of anything goes through `Budget`, which ends
the
  rendering after TIME_LIMIT_S of processor time or MAX_CHARACTERS printed, inside macros too;
- `+ * ** %`, `~`, joins, replacements and formats are refused if their result would be too large; filters and
  methods that are not listed do not exist;
- lists and dictionaries are weighed when they are made (by their size if written out, so that a list of two
lists of
  two lists … does not get far).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

TIME_LIMIT_S = 2.0
"""Processor time of the thread, so that a busy machine does not fail a good template."""

MAX_CHARACTERS = 1 << 23
MAX_ITEMS = 1 << 18
MAX_INTEGER_BITS = 4096
MAX_INDENT = 1000

BUDGET = "\0budget"
"""The budget's name among the variables of a rendering: no template can write it."""

STRING_METHODS = frozenset(
    "strip lstrip rstrip split rsplit splitlines startswith endswith upper lower title capitalize casefold "
    "swapcase find rfind index rindex count partition rpartition removeprefix removesuffix isdigit isdecimal "
    "isnumeric isalpha isalnum isspace islower isupper istitle isascii isidentifier".split()
)
"""Methods whose result is about as large as the string."""

FILTER_NAMES = (
    "abs capitalize count d default dictsort e escape first float groupby int items last length list lower "
    "map max min reject rejectattr reverse round safe select selectattr sort sum title trim truncate unique "
    "upper wordcount"
).split()
"""Jinja's filters that are kept as they are, apart from the weight of what they return."""


class Budget:
    """What is left for one rendering. SecurityError when it is spent."""

    def __init__(self) -> None:
        self._deadline_s = time.thread_time() + TIME_LIMIT_S
        self._characters = MAX_CHARACTERS

    def spend(self, characters: int) -> None:
        """Account for one step that prints so many characters."""
        self._characters -= characters
        if self._characters < 0:
            raise SecurityError(f"it prints more than {MAX_CHARACTERS} characters")
        if time.thread_time() > self._deadline_s:
            raise SecurityError(f"it takes more than {TIME_LIMIT_S} s of processor time")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as Hugging Face's chat templates expect it, with the limits of this module."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, GenerationExtension],
            finalize=_printed,
        )
        self.globals = {name: self.globals[name] for name in ("range", "namespace")}
        self.globals["dict"] = lambda *args, **kwargs: weighed(dict(*args, **kwargs))
        self.filters = {name: _weighing(FILTERS[name]) for name in FILTER_NAMES} | FILTERS_WITH_LIMITS

    def compile_source(self, source: str) -> Any:
        """The template of a source, with the checks built in. TemplateError or RecursionError if it is
        none."""
        tree = cast(nodes.Template, _Guard().visit(self.parse(source)))
        return self.from_string(tree)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if not isinstance(obj, str):
            return super().getattr(obj, attribute)
        if attribute in STRING_METHODS:
            return getattr(obj, attribute)
        if attribute in STRING_METHODS_WITH_LIMITS:
            return partial(STRING_METHODS_WITH_LIMITS[attribute], str(obj))
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str) and isinstance(argument, str):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __context.parent[BUDGET].spend(0)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    @staticmethod
    @pass_context
    def spend(context: Context, characters: int) -> None:
        context.parent[BUDGET].spend(characters)

    @staticmethod
    def weigh(value: Any) -> Any:
        return weighed(value)

    @staticmethod
    def concat_texts(*values: Any) -> str:
        return _joined("", map(text_of, values))


class GenerationExtension(Extension):
    """`{% generation %}…{% endgeneration %}`, by which templates mark what a model wrote: rendered as it
    is."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Guard(NodeTransformer):
    """Puts calls of the environment's checks into the tree of a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._account_for(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._account_for(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._account_for(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat_texts", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._weighed(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._weighed(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._weighed(node) if node.ctx == "load" else node

    def _account_for(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        """A step at the head of the body, for the text that each run of it prints."""
        characters = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        check = _call("spend", [nodes.Const(characters)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(check, lineno=node.lineno))
        return node

    def _weighed(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:
        if all(isinstance(part, nodes.Const) for part in node.iter_child_nodes()):
            return node
        self.generic_visit(node)
        return _call("weigh", [node], node.lineno)


def _call(method: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
    """A call of a method of the environment, out of the template's reach."""
    target = nodes.EnvironmentAttribute(method, lineno=lineno)
    return nodes.Call(target, arguments, [], None, None, lineno=lineno)


def weighed(value: Any) -> Any:
    """`value`, if what it holds, counted as often as it is reached, is at most MAX_ITEMS."""
    stack, count = [value], 0
    while stack:
        top = stack.pop()
        if isinstance(top, Mapping):
            stack.extend(top.values())
            count += len(top)
        elif isinstance(top, list | tuple | set | frozenset):
            stack.extend(top)
            count += len(top)
        if count > MAX_ITEMS:
            raise SecurityError(f"it makes a list of more than {MAX_ITEMS} items")
    return value


def text_of(value: Any) -> str:
    """The text of a value that a template may print."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | Mapping):
        size = 0
        for part in _leaves(weighed(value)):
            size = _checked_size(size + len(part) if isinstance(part, str) else size)
        return str(value)
    if value is None or isinstance(value, int | float | Undefined):
        return str(value)
    raise SecurityError(f"it prints a {type(value).__name__}")


def _leaves(value: Any) -> Iterator[Any]:
    """Everything in a container, keys too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


@pass_context
def _printed(context: Context, value: Any) -> str:
    """What goes through every `{{ … }}`."""
    text = text_of(value)
    context.parent[BUDGET].spend(len(text))
    return text


def _checked_size(characters: int) -> int:
    if characters > MAX_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters")
    return characters


def _check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse what `left operator right` would make too large."""
    if operator == "%" and isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,))
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        _checked_size(len(left) + len(right))
    elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        _check_items(len(left) + len(right))
    elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        factor = max(right, 0) if operator == "**" else 1
        if left.bit_length() * factor + right.bit_length() > MAX_INTEGER_BITS:
            raise SecurityError(f"it computes an integer of more than {MAX_INTEGER_BITS} bits")
    elif operator == "*":
        _check_repetition(left, right)


def _check_repetition(left: Any, right: Any) -> None:
    sequence, count = (right, left) if isinstance(left, int) else (left, right)
    if isinstance(sequence, str) and isinstance(count, int):
        _checked_size(len(sequence) * count)
    elif isinstance(sequence, list | tuple) and isinstance(count, int):
        _check_items(len(sequence) * count)
        weighed([sequence] * count if len(sequence) * count else [])


def _check_items(count: int) -> None:
    if count > MAX_ITEMS:
        raise SecurityError(f"it makes a list of more than {MAX_ITEMS} items")


def _check_format(pattern: str, values: Iterable[Any]) -> None:
    """Refuse a format with a width of five digits or one that is an argument, and values too large for it."""
    if re.search(r"\d{5}|\*|\{[^{}]*\{", pattern):
        raise SecurityError("it formats with a width that is too large or computed")
    largest = max((len(text_of(value)) for value in values), default=0)
    _checked_size((pattern.count("%") + pattern.count("{")) * (10_000 + largest))


def _format_percent(pattern: str, *args: Any, **kwargs: Any) -> str:
    """Jinja's filter `format`: printf's way."""
    _check_format(pattern, [*args, *kwargs.values()])
    return str(pattern) % (kwargs or args)


def _format_braces(pattern: str, *args: Any, **kwargs: Any) -> str:
    """`str.format`, its fields looked up by the sandbox."""
    _check_format(pattern, [*args, *kwargs.values()])
    return SandboxedFormatter(TemplateEnvironment()).vformat(pattern, args, kwargs)


def _joined(separator: str, texts: Iterable[str]) -> str:
    parts = list(texts)
    _checked_size(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _join(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    """Jinja's filter `join`."""
    if attribute is not None:
        values = (value.get(attribute, "") for value in values)
    return _joined(str(d), map(text_of, values))


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    text, old, new = text_of(value), str(old), str(new)
    found = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    _checked_size(len(text) + found * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    prefix = " " * min(width, MAX_INDENT + 1) if isinstance(width, int) else width
    if len(prefix) > MAX_INDENT:
        raise SecurityError(f"it indents by more than {MAX_INDENT} characters")
    _checked_size(len(text) + (text.count("\n") + 1) * len(prefix))
    return str(FILTERS["indent"](text, prefix, first, blank))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` as chat templates expect it: characters as they are, nothing escaped for HTML."""
    text_of(value if isinstance(value, list | tuple | Mapping) else [value])
    if indent is not None and indent > MAX_INDENT // 100:
        raise SecurityError(f"it indents JSON by more than {MAX_INDENT // 100}")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _weighing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is weighed; marks such as `pass_environment` are kept."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return str(result) if isinstance(result, str) else weighed(result)  # str: filters may make Markup

    checked.__dict__.update(getattr(function, "__dict__", {}))  # `abs` has none
    return checked


STRING_METHODS_WITH_LIMITS: dict[str, Callable[..., str]] = {
    "replace": _replace,
    "join": lambda separator, texts: _joined(separator, texts),
    "format": _format_braces,
}

FILTERS_WITH_LIMITS: dict[str, Callable[..., Any]] = {
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "format": _format_percent,
    "string": text_of,
    "tojson": to_json,
}
