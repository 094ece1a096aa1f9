"""A GBNF grammar matches exactly the texts that its characters say, whatever lexemes llguidance is given."""

from __future__ import annotations

import itertools
from functools import cache

import llguidance
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from etude.engine.gbnf import Alt, Chars, Node, Ref, Repeat, Seq, read_gbnf
from etude.engine.lexemes import gbnf_to_lark
from etude.records import EtudeError
from tests.engine.byte_tokenizer import ByteTokenizer

ALPHABET = "ab(éè"  # the last two have the same first byte
TEXTS = ["".join(chars) for n in range(4) for chars in itertools.product(ALPHABET, repeat=n)]


@cache
def tokenizer() -> tuple[ByteTokenizer, llguidance.LLTokenizer]:
    own = ByteTokenizer()
    return own, llguidance.LLTokenizer(own.to_json(), n_vocab=own.n_vocab, eos_token=sorted(own.eog_ids))


def accepted(source: str, texts: list[str]) -> list[str]:
    """The texts that llguidance takes, token by token, as complete ones."""
    own, for_grammars = tokenizer()
    lark = llguidance.LLMatcher.grammar_from_lark(gbnf_to_lark(source))
    matcher = llguidance.LLMatcher(for_grammars, lark, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    found = []
    for text in texts:
        ids = own.encode(text)
        copy = matcher.deep_copy()
        if copy.try_consume_tokens(ids) == len(ids) and copy.is_accepting():
            found.append(text)
    return found


class Recogniser:
    """Decides by trying everything: the spans of a text that each rule matches, until none is added."""

    def __init__(self, rules: dict[str, Node], text: str) -> None:
        self.rules, self.text = rules, text
        self.spans: dict[str, frozenset[tuple[int, int]]] = dict.fromkeys(rules, frozenset())

    def matches(self) -> bool:
        while True:
            spans = {
                name: frozenset(
                    (begin, end) for begin in range(len(self.text) + 1) for end in self.ends(body, begin)
                )
                for name, body in self.rules.items()
            }
            if spans == self.spans:
                return (0, len(self.text)) in spans["root"]
            self.spans = spans

    def ends(self, node: Node, begin: int) -> set[int]:
        match node:
            case Chars(ranges):
                point = ord(self.text[begin]) if begin < len(self.text) else -1
                return {begin + 1} if any(a <= point <= b for a, b in ranges) else set()
            case Ref(name):
                return {end for start, end in self.spans[name] if start == begin}
            case Alt(options):
                return set().union(*(self.ends(option, begin) for option in options))
            case Repeat(item, least, most):
                return self.repeat_ends(item, begin, least, most)
            case Seq(items):
                ends = {begin}
                for item in items:
                    ends = {end for middle in ends for end in self.ends(item, middle)}
                return ends
        raise AssertionError(node)

    def repeat_ends(self, item: Node, begin: int, least: int, most: int | None) -> set[int]:
        found, ends = set(), {begin}
        for count in range(len(self.text) + least + 1 if most is None else most + 1):
            found |= ends if count >= least else set()
            ends = {end for middle in ends for end in self.ends(item, middle)}
        return found


@pytest.mark.parametrize(
    ("source", "yes", "no"),
    [
        (r'root ::= [a-z]+ "b"', ["ab", "bb", "aab"], ["b", "a", ""]),
        ('root ::= word "b"\nword ::= [a-z]+', ["aab"], ["b"]),
        ('root ::= [a-z]* "bc" | "(" root ")"', ["abcbc", "bc", "((bc))", "(bbc)"], ["abcb", "(bc", "((bc)"]),
        ('root ::= name "=" name | "(" root ")"\nname ::= [a-z] [a-z0-9]*', ["a1=b", "((a=b2))"], ["1=a"]),
        ('root ::= root "b" | "a"', ["a", "ab", "abb"], ["b", ""]),
        (r'root ::= [\u0041-\u005A] "\u00e9" "\x42" "\U0001F600"', ["AéB😀"], ["aéB😀"]),
        ("root ::= . .", ["a\n", "é!", "\n\n"], ["a", "abc"]),
        ('root ::= [^a\\]\\\\"-]', ["b", "[", "\n", "é"], ["a", "]", "\\", '"', "-"]),
        ("root ::= [a-c-]", ["-", "b"], ["d"]),
        ("root ::= [&&~~^]+", ["&", "&&~^"], ["a"]),
        ('root ::= "a"{2} "b"{1,2} "c"{2,} "d"{0,1}', ["aabcc", "aabbcccd"], ["abcc", "aabbbcc"]),
        ('root ::= "a"** "b"', ["b", "aab"], ["a"]),
        ('root ::= ( "a" | # comment )\n "b"\n)?', ["", "a", "b"], ["ab"]),
        ('root ::= "" | "a"', ["", "a"], ["aa"]),
        ('root ::= x{0} "a"\nx ::= "b"', ["a"], ["ba"]),
        ('root ::= a-b a_b aB\na-b ::= "a"\na_b ::= "b"\naB ::= "c"', ["abc"], ["aaa"]),
        ('root ::= start L0\nstart ::= "a"\nL0 ::= "b" root?', ["ab", "abab"], ["a"]),
        ("root ::= [\\u0430-\\u044f]+ tail\ntail ::= \"\\u0451\" root?", ["сё", "ссёсё"], ["ё", "сс"]),
        ('root ::= "/" [/]+ "*"', ["//*"], ["/*"]),
    ],
)  # fmt: skip
def test_texts(source: str, yes: list[str], no: list[str]) -> None:
    assert accepted(source, yes + no) == yes
    rules = read_gbnf(source)
    assert [text for text in yes + no if Recogniser(rules, text).matches()] == yes


def bodies(rules: list[str]) -> st.SearchStrategy[str]:
    """GBNF for the body of a rule."""
    atoms = st.one_of(
        st.text(ALPHABET, min_size=1, max_size=3).map(lambda text: f'"{text}"'),
        st.sets(st.sampled_from(ALPHABET), min_size=1).map(lambda chars: f"[{''.join(sorted(chars))}]"),
        st.sampled_from(["[^a]", "[^é]", "."]),
        st.sampled_from(rules or ['"b"']),
    )
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}"])).map(
                lambda p: f"({p[0]}){p[1]}"
            ),
            st.lists(inner, min_size=2, max_size=3).map(" ".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda options: f"({' | '.join(options)})"),
        ),
        max_leaves=6,
    )


def grammars(root_refs: list[str], other_refs: list[str], recursion: str) -> st.SearchStrategy[str]:
    """Three rules; which of them lead on to which."""
    return st.builds(
        "root ::= {}{}\nx ::= {}\ny ::= {}".format,
        bodies(root_refs),
        st.just(recursion),
        bodies(other_refs),
        bodies(other_refs),
    )


RANDOM = {
    "recursive anywhere": grammars(["root", "x", "y"], ["root", "x", "y"], ""),
    # only root leads back to itself, so that x and y may become lexemes
    "lexemes in a recursion": grammars(["x", "y"], [], ' | "(" root'),
    "lexemes before a recursion": grammars(["x", "y"], [], " | x root y"),
}


@pytest.mark.parametrize("kind", RANDOM)
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_grammars_match_what_their_characters_say(kind: str, data: st.DataObject) -> None:
    source = data.draw(RANDOM[kind])
    try:
        tree = read_gbnf(source)
    except EtudeError as error:
        assert "has no text" in str(error)
        reject()
    assert accepted(source, TEXTS) == [text for text in TEXTS if Recogniser(tree, text).matches()]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "no rule named root"),
        ('ROOT ::= "a"', "no rule named root"),
        ("root ::= a b\na ::= \"x\"", "uses the rule 'b' .in 'root'. without"),
        ('root ::= "a"\nroot ::= "b"', "defines the rule 'root' twice"),
        ('root ::= "a" x\nx ::= "b" root', "has no text"),
        ('root = "a"', "line 1: expected ::=, found '= \"a\"'"),
        ('root ::= "a"\n\n  ) x', r"line 3: expected the name of a rule, found '\) x'"),
        ('root ::= "a" )', r"line 1: expected the end of the line, found '\)'"),
        ('root ::= ("a"', r"expected \), found the end"),
        ('root ::= "a', "expected the end of a text or of a set"),
        ("root ::= [a", "expected the end of a text or of a set"),
        ("root ::= []", "at least one character"),
        ("root ::= [^\\U00000000-\\U0010FFFF]", "at least one character"),
        ("root ::= [b-a]", "ascends, not 'b' to 'a'"),
        ('root ::= "\\q"', r"an escape such as .* not \\q"),
        ('root ::= "\\u12"', "an escape"),
        ('root ::= "\\ud800"', "an escape"),
        ('root ::= "\\U00110000"', "an escape"),
        ("root ::= * \"a\"", "something to repeat"),
        ('root ::= "a"{x}', "expected a number, found 'x}'"),
        ('root ::= "a"{3,2}', "ascend, not 3 to 2"),
        ('root ::= "a"{2001}', "at most 2000 repetitions, not 2001"),
        ('root ::= "a"{99999999999999999999}', "at most 2000"),
        ("root ::= <think> \"a\"", "cannot name tokens"),
        ("root ::= !<[5]>", "cannot name tokens"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nest too deeply"),
    ],
)  # fmt: skip
def test_what_is_not_gbnf_is_refused_with_its_line(source: str, words: str) -> None:
    with pytest.raises(EtudeError, match=words):
        gbnf_to_lark(source)


def test_json_stays_a_few_lexemes() -> None:
    # speed depends on it: single characters as lexemes are thirty times slower
    source = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
    lines = [line for line in gbnf_to_lark(source).splitlines() if line.startswith("L")]
    assert len(lines) < 15
    texts = ['{"a": [1, -2.5e3, "x\\u00e9\\n", {}], "b":null}', "{ }", '{"a":tru}', '{"a":1 2}', '{"a":"\n"}']
    assert accepted(source, texts) == texts[:2]


def test_a_large_list_of_words_compiles() -> None:
    words = [f"w{i:05d}" for i in range(3000)]
    source = "root ::= word\nword ::= " + " | ".join(f'"{word}"' for word in words)
    assert accepted(source, ["w00000", "w02999", "w03000", "w0"]) == ["w00000", "w02999"]
