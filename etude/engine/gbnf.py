"""llama.cpp's grammar notation, GBNF, read into a tree of character sets.

    root  ::= "(" ws ( root | [a-z]+ ) ws ")"     # comment to the end of the line
    ws    ::= [ \\t\\n]{0,3}

Its words mean characters and nothing else: what matches is decided character by character, as in llama.cpp
(src/llama-grammar.cpp). lexemes.py turns the tree into the Lark form that llguidance reads. (llguidance's own
converter cuts text into longest tokens first, and so rejects texts that GBNF accepts.)
"""

from __future__ import annotations

from dataclasses import dataclass

from etude.records import EtudeError

MAX_CHAR = 0x10FFFF
MAX_REPEATS = 2000  # llama.cpp's
SURROGATES = (0xD800, 0xDFFF)  # not characters
ESCAPES = {"t": 9, "r": 13, "n": 10, "\\": 92, '"': 34, "[": 91, "]": 93, "-": 45}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True)
class Chars:
    """One character out of a set: ascending, disjoint (first, last) code points."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Ref:
    """Another rule."""

    name: str


@dataclass(frozen=True)
class Seq:
    """One after the other; () is the empty text."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """One of several."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` times (None: any number)."""

    item: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Lexeme:
    """A part that llguidance is to read in one go. (lexemes.py makes these, not the reader.)"""

    node: Node


Node = Chars | Ref | Seq | Alt | Repeat | Lexeme


def read_gbnf(text: str) -> dict[str, Node]:
    """Rules by name, "root" among them. EtudeError with the line if the text is not GBNF.

    >>> read_gbnf('root ::= "a" [b-d]?')["root"].items[1].item
    Chars(ranges=((98, 100),))
    """
    rules = _Reader(text).rules()
    if "root" not in rules:
        raise EtudeError("the GBNF grammar has no rule named root, where a text begins")
    for name, body in rules.items():
        for used in references(body):
            if used not in rules:
                raise EtudeError(f"the GBNF grammar uses the rule {used!r} (in {name!r}) without defining it")
    if "root" not in _ending_rules(rules):
        raise EtudeError("the GBNF grammar has no text: its rule root always leads on to another rule")
    return rules


def _ending_rules(rules: dict[str, Node]) -> set[str]:
    """Rules that some text matches."""
    ending: set[str] = set()

    def ends(node: Node) -> bool:
        match node:
            case Ref(name):
                return name in ending
            case Alt(options):
                return any(map(ends, options))
            case Repeat(item, least):
                return least == 0 or ends(item)
        return all(map(ends, children(node)))

    while more := {name for name, body in rules.items() if name not in ending and ends(body)}:
        ending |= more
    return ending


def references(node: Node) -> list[str]:
    """Names of the rules that a tree mentions."""
    if isinstance(node, Ref):
        return [node.name]
    return [name for child in children(node) for name in references(child)]


def children(node: Node) -> tuple[Node, ...]:
    """What a node is made of."""
    match node:
        case Seq(items):
            return items
        case Alt(options):
            return options
        case Repeat(item) | Lexeme(item):
            return (item,)
    return ()


def char_set(ranges: list[tuple[int, int]], *, negated: bool = False) -> Chars:
    """Ranges in any order -> Chars; without surrogates."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted([*ranges, SURROGATES] if negated else ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    if negated:
        edges = [-1, *(edge for pair in merged for edge in pair), MAX_CHAR + 1]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        merged = [(before + 1, after - 1) for before, after in pairs if before + 1 <= after - 1]
    return Chars(tuple(merged))


class _Reader:
    """Recursive descent over the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._skip(newlines=True)
        while self._next():
            name = self._name("the name of a rule")
            self._skip(newlines=False)
            if not self._take("::="):
                raise self._wrong("::=")
            if name in rules:
                raise EtudeError(f"the GBNF grammar defines the rule {name!r} twice")
            self._skip(newlines=True)
            rules[name] = self._alternatives(nested=False)
            if self._next() and self._next() not in "\r\n":
                raise self._wrong("the end of the line")
            self._skip(newlines=True)
        return rules

    def _alternatives(self, nested: bool) -> Node:
        options = [self._sequence(nested)]
        while self._take("|"):
            self._skip(newlines=True)
            options.append(self._sequence(nested))
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _sequence(self, nested: bool) -> Node:
        items: list[Node] = []
        while (item := self._item()) is not None:
            self._skip(newlines=nested)
            while (counts := self._repeats()) is not None:
                least, most = counts
                item = Seq(()) if most == 0 else Repeat(item, least, most)
                self._skip(newlines=nested)
            items.append(item)
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def _item(self) -> Node | None:
        char = self._next()
        if self._take('"'):
            return self._literal()
        if self._take("["):
            return self._char_class()
        if self._take("."):
            return char_set([], negated=True)
        if self._take("("):
            self._skip(newlines=True)
            inner = self._alternatives(nested=True)
            if not self._take(")"):
                raise self._wrong(")")
            return inner
        if char in ("<", "!"):
            raise self._wrong("text: a grammar here cannot name tokens")
        if char in ("*", "+", "?", "{"):
            raise self._wrong("something to repeat")
        return Ref(self._name("a rule")) if self._is_name(char) else None

    def _literal(self) -> Node:
        chars: list[Node] = []
        while not self._take('"'):
            point = self._char()
            chars.append(Chars(((point, point),)))
        return chars[0] if len(chars) == 1 else Seq(tuple(chars))

    def _char_class(self) -> Node:
        negated = self._take("^")
        ranges = []
        while not self._take("]"):
            first = last = self._char()
            if self._next() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._char()
            if last < first:
                raise self._wrong(f"a range that ascends, not {chr(first)!r} to {chr(last)!r}")
            ranges.append((first, last))
        chars = char_set(ranges, negated=negated)
        if not chars.ranges:
            raise self._wrong("at least one character in [ ]")
        return chars

    def _repeats(self) -> tuple[int, int | None] | None:
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return counts
        if not self._take("{"):
            return None
        least = self._count()
        most: int | None = least
        if self._take(","):
            self._skip(newlines=False)
            most = None if self._next() == "}" else self._count()
        if not self._take("}"):
            raise self._wrong("} or ,")
        if most is not None and most < least:
            raise self._wrong(f"counts that ascend, not {least} to {most}")
        return least, most

    def _count(self) -> int:
        self._skip(newlines=False)
        digits = ""
        while self._next().isascii() and self._next().isdigit():
            digits += self._next()
            self._at += 1
        if not digits:
            raise self._wrong("a number")
        self._skip(newlines=False)
        if len(digits) > 9 or int(digits) > MAX_REPEATS:
            raise self._wrong(f"at most {MAX_REPEATS} repetitions, not {digits}")
        return int(digits)

    def _char(self) -> int:
        char = self._next()
        if not char:
            raise self._wrong("the end of a text or of a set of characters")
        self._at += 1
        if char != "\\":
            return ord(char)
        kind = self._next()
        self._at += 1
        if kind in ESCAPES:
            return ESCAPES[kind]
        if kind in HEX_DIGITS and kind:
            digits = self._text[self._at : self._at + HEX_DIGITS[kind]]
            self._at += HEX_DIGITS[kind]
            try:
                point = int(digits, 16)
            except ValueError:
                point = -1
            is_char = 0 <= point <= MAX_CHAR and not SURROGATES[0] <= point <= SURROGATES[1]
            if len(digits) == HEX_DIGITS[kind] and is_char:
                return point
        raise self._wrong(f'an escape such as \\n, \\" or \\u00e9, not \\{kind}')

    def _name(self, what: str) -> str:
        begin = self._at
        while self._is_name(self._next()):
            self._at += 1
        if begin == self._at:
            raise self._wrong(what)
        return self._text[begin : self._at]

    @staticmethod
    def _is_name(char: str) -> bool:
        return char.isascii() and (char.isalnum() or char in ("-", "_"))

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, wanted: str) -> bool:
        found = self._text.startswith(wanted, self._at)
        self._at += len(wanted) * found
        return found

    def _skip(self, newlines: bool) -> None:
        while (char := self._next()) and char in (" \t#\r\n" if newlines else " \t#"):
            self._at += 1
            while char == "#" and self._next() and self._next() not in "\r\n":
                self._at += 1

    def _wrong(self, wanted: str) -> EtudeError:
        line = self._text.count("\n", 0, self._at) + 1
        found = self._text[self._at : self._at + 20].split("\n")[0]
        found = repr(found) if found else "the end of the line" if self._next() else "the end"
        return EtudeError(f"the GBNF grammar cannot be used: line {line}: expected {wanted}, found {found}")
