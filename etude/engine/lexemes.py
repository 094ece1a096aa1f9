"""GBNF -> the Lark form of llguidance, so that the same texts match.

llguidance first cuts a text into lexemes (its terminals), each as long as possible, and then parses those.
GBNF knows characters only: `[a-z]+ "b"` matches "aab" there, but a longest lexeme `[a-z]+` leaves no "b".
Single characters as lexemes would always be right, and many times slower. So here a part without recursion
becomes one lexeme, unless that could change what matches:

    lexeme 1 reads the text w, the grammar may go on with the character c, and lexeme 2 could read w and then
    c: it would go on and swallow c. Then lexeme 2 is cut into its parts, and all is checked again.

Characters count as equal where their first UTF-8 bytes are, because lexemes end at bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import groupby

from etude.engine.automaton import Alphabet, Automaton, TooLarge
from etude.engine.gbnf import Alt, Chars, Lexeme, Node, Ref, Repeat, Seq, children, read_gbnf, references
from etude.records import EtudeError

EMPTY = Seq(())


def gbnf_to_lark(text: str) -> str:
    """EtudeError with line and reason if the text is not GBNF."""
    try:
        rules = read_gbnf(text)
        regular = _regular_rules(rules)
        opened: set[Node] = set()
        while True:
            grammar = _cut_rules(rules, regular, opened)
            swallowing = _swallowing(grammar, rules)
            if not swallowing:
                return _Writer(grammar, rules).text()
            opened |= swallowing
    except RecursionError:
        raise EtudeError("the GBNF grammar cannot be used: its brackets or rules nest too deeply") from None


def _regular_rules(rules: Mapping[str, Node]) -> frozenset[str]:
    """Rules that lead neither back to themselves nor to one that does."""
    regular: set[str] = set()
    while True:
        found = {name for name, body in rules.items() if regular.issuperset(references(body))}
        if found == regular:
            return frozenset(regular)
        regular = found


def _cut_rules(rules: Mapping[str, Node], regular: frozenset[str], opened: set[Node]) -> dict[str, Node]:
    """The rules that stay rules, from root on, cut into lexemes; parts in `opened` are cut further."""
    grammar: dict[str, Node] = {}

    @cache
    def is_regular(node: Node) -> bool:
        return regular.issuperset(references(node))

    def cut(node: Node) -> Node:
        if isinstance(node, Chars) or (is_regular(node) and node not in opened and node != EMPTY):
            return Lexeme(node)
        match node:
            case Seq(items):
                return Seq(tuple(map(cut, _joined(items, is_regular, opened))))
            case Alt(options):
                return Alt(tuple(map(cut, options)))
            case Repeat(item, least, most):
                return Repeat(cut(item), least, most)
            case Ref(name) if name not in grammar:
                grammar[name] = EMPTY  # it may refer to itself
                grammar[name] = cut(rules[name])
        return node

    grammar["root"] = EMPTY
    grammar["root"] = cut(rules["root"])
    return grammar


def _joined(items: tuple[Node, ...], is_regular: Callable[[Node], bool], opened: set[Node]) -> list[Node]:
    """Neighbours without recursion as one part, unless that part is in `opened`."""
    parts: list[Node] = []
    for regular, run in groupby(items, is_regular):
        alone = tuple(run)
        together = Seq(alone)
        parts += [together] if regular and len(alone) > 1 and together not in opened else alone
    return parts


def _lexemes(node: Node) -> Iterator[Lexeme]:
    if isinstance(node, Lexeme):
        yield node
    else:
        for child in children(node):
            yield from _lexemes(child)


def _swallowing(grammar: Mapping[str, Node], rules: Mapping[str, Node]) -> set[Node]:
    """Parts that, read as lexemes, would take characters that belong to what comes after another lexeme."""
    lexemes = list(dict.fromkeys(lexeme for body in grammar.values() for lexeme in _lexemes(body)))
    if len(lexemes) == 1 and len(grammar) == 1 and isinstance(grammar["root"], Lexeme):
        return set()  # nothing follows it
    alphabet = Alphabet(rules.values())
    automata: dict[Lexeme, Automaton] = {}
    too_large: set[Node] = set()
    for lexeme in lexemes:
        try:
            automata[lexeme] = Automaton(lexeme.node, rules, alphabet)
        except TooLarge:
            too_large.add(lexeme.node)
    if too_large:
        return too_large
    following = _Following(grammar, automata).of_lexemes()
    found: set[Node] = set()
    for one, after in following.items():
        after = alphabet.with_same_first_byte(after)
        for other in lexemes:
            if other.node not in found and after & automata[other].inner:
                if automata[one].may_swallow(automata[other], after):
                    found.add(other.node)
    return found


class _Following:
    """Which characters can come after each lexeme: the classical FIRST and FOLLOW sets, as masks."""

    def __init__(self, grammar: Mapping[str, Node], automata: Mapping[Lexeme, Automaton]) -> None:
        self._grammar = grammar
        self._automata = automata
        self._firsts: dict[str, tuple[bool, int]] = dict.fromkeys(grammar, (False, 0))
        self._after_rules: dict[str, int] = dict.fromkeys(grammar, 0)
        self._after_lexemes: dict[Lexeme, int] = dict.fromkeys(automata, 0)

    def of_lexemes(self) -> dict[Lexeme, int]:
        """Lexeme -> mask of the characters that may come next."""
        while (firsts := {name: self._first(body) for name, body in self._grammar.items()}) != self._firsts:
            self._firsts = firsts
        before: object = None
        while before != (now := (dict(self._after_rules), dict(self._after_lexemes))):
            before = now
            for name, body in self._grammar.items():
                self._spread(body, self._after_rules[name])
        return self._after_lexemes

    def _first(self, node: Node) -> tuple[bool, int]:
        """(Whether it matches the empty text, characters it can begin with)."""
        match node:
            case Lexeme():
                automaton = self._automata[node]
                return automaton.accepts[0], sum(mask for mask, _ in automaton.moves[0])
            case Ref(name):
                return self._firsts[name]
            case Repeat(item, least):
                empty, mask = self._first(item)
                return empty or least == 0, mask
            case Alt(options):
                parts = [self._first(option) for option in options]
                mask = 0
                for part in parts:
                    mask |= part[1]
                return any(part[0] for part in parts), mask
        mask = 0
        for item in children(node):
            empty, first = self._first(item)
            mask |= first
            if not empty:
                return False, mask
        return True, mask

    def _spread(self, node: Node, after: int) -> None:
        """Tell every part of a tree what can come after it."""
        match node:
            case Lexeme():
                self._after_lexemes[node] |= after
            case Ref(name):
                self._after_rules[name] |= after
            case Seq(items):
                for item in reversed(items):
                    self._spread(item, after)
                    empty, first = self._first(item)
                    after = first | (after if empty else 0)
            case Repeat(item, _, most):
                self._spread(item, after if most == 1 else after | self._first(item)[1])
            case _:
                for child in children(node):
                    self._spread(child, after)


class _Writer:
    """Lark text: rules in lower case, lexemes and the rules inside them in upper case."""

    def __init__(self, grammar: Mapping[str, Node], rules: Mapping[str, Node]) -> None:
        self._grammar = grammar
        self._rules = rules
        self._numbers = {name: number for number, name in enumerate(rules)}
        self._terminals: dict[Node, str] = {}  # a lexeme's part or a Ref -> its name; grows while writing
        self._lines: list[str] = []

    def text(self) -> str:
        """The whole grammar."""
        rules = [f"{self._rule_name(name)}: {self._tree(body)}" for name, body in self._grammar.items()]
        return "\n".join(["%llguidance {}", *rules, *self._lines, ""])

    def _rule_name(self, name: str) -> str:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        return "start" if name == "root" else f"r{self._numbers[name]}_{plain}"

    def _terminal(self, node: Node) -> str:
        """The name of a terminal, whose definition is written when it is first asked for."""
        if node not in self._terminals:
            name = self._rule_name(node.name).upper() if isinstance(node, Ref) else f"L{len(self._terminals)}"
            self._terminals[node] = name
            body = self._rules[node.name] if isinstance(node, Ref) else node
            self._lines.append(f"{name}: {self._tree(body, inside=True)}")
        return self._terminals[node]

    def _tree(self, node: Node, inside: bool = False) -> str:
        """A body; inside: of a terminal."""
        match node:
            case Chars(ranges):
                return "/[" + "".join(f"\\u{{{a:x}}}-\\u{{{b:x}}}" for a, b in ranges) + "]/"
            case Lexeme(part):
                return self._terminal(part)
            case Ref(name):
                return self._terminal(node) if inside else self._rule_name(name)
            case Seq(items):
                return "(" + (" ".join(self._tree(item, inside) for item in items) or '""') + ")"
            case Alt(options):
                return "(" + " | ".join(self._tree(option, inside) for option in options) + ")"
            case Repeat(item, least, most):
                signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
                count = signs.get((least, most)) or f"{{{least},{'' if most is None else most}}}"
                return f"({self._tree(item, inside)}){count}"
