"""Templates that try to run forever, to fill the memory or to reach Python end in an error, and soon."""

from __future__ import annotations

import threading
import tracemalloc

import pytest

from etude.model import sandbox
from etude.model.chat import ChatTemplate, ChatTemplateError
from etude.records import Message

MESSAGES = [Message("user", "Hello", extra={"items": [1, 2, 3]})]
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
DOUBLE_LIST = "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = EXPR %}{% endfor %}"
DOUBLE_TEXT = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = EXPR %}{% endfor %}"

ENDLESS = {
    "empty loops": NESTED.replace("BODY", ""),
    "loops that test": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "loops that set": NESTED.replace("BODY", "{% set x = a %}"),
    "macros that call themselves": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "macros without output": "{% macro f(n) %}{% set x = n and f(n-1) or n and f(n-1) %}{% endmacro %}"
    "{% set y = f(60) %}",
    "a loop that calls itself": "{% for x in [1,2,3] recursive %}{% if loop.depth < 60 %}{{ loop([1,2,3]) }}"
    "{% endif %}{% endfor %}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "calls of a caller": "{% macro m() %}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 3 + NESTED.replace("BODY", "") + "{% endcall %}" * 3,
}  # fmt: skip

HUGE = {
    "repeated text": "{{ 'a' * 1000000000 }}",
    "repeated from the left": "{{ 1000000000 * 'a' }}",
    "repeated by a variable": "{% set n = 1000000000 %}{{ messages[0].content * n }}",
    "repeated list": "{{ ([0] * 1000000000) | length }}",
    "repeated lists of lists": "{% set l = [0] * 90000 %}{{ ([l] * 90000) | length }}",
    "added text": DOUBLE_TEXT.replace("EXPR", "ns.s + ns.s"),
    "concatenated text": DOUBLE_TEXT.replace("EXPR", "ns.s ~ ns.s"),
    "replaced text": DOUBLE_TEXT.replace("EXPR", "ns.s.replace('a', ns.s)"),
    "replaced by a filter": DOUBLE_TEXT.replace("EXPR", "ns.s | replace('a', ns.s)"),
    "joined text": DOUBLE_TEXT.replace("EXPR", "[ns.s, ns.s] | join(ns.s)"),
    "joined by a method": DOUBLE_TEXT.replace("EXPR", "ns.s.join([ns.s, ns.s])"),
    "formatted text": DOUBLE_TEXT.replace("EXPR", "'%s%s' % (ns.s, ns.s)"),
    "formatted by a filter": DOUBLE_TEXT.replace("EXPR", "'%s%s' | format(ns.s, ns.s)"),
    "formatted by a method": DOUBLE_TEXT.replace("EXPR", "'{0}{0}'.format(ns.s)"),
    "a printf width": "{{ '%1000000000d' % 1 }}",
    "a printf width as argument": "{{ '%*d' % (1000000000, 1) }}",
    "a format width": "{{ '{:1000000000}'.format(1) }}",
    "a format width as argument": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a precision": "{{ '%.1000000000f' | format(1.0) }}",
    "padding": "{{ 'a'.center(1000000000) }}",
    "a padding filter": "{{ 'a' | center(1000000000) }}",
    "indentation": "{{ ('a\\n' * 1000) | indent(1000000000) }}",
    "indentation of JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "tabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a large product": "{% set ns = namespace(n=9) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}",
    "a large range": "{{ range(10000000000) | list }}",
    "many values printed": "{% for a in range(99999) %}{{ messages[0].content ~ 'x' * 1000 }}{% endfor %}",
    "much text in a loop": "{% for a in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "much text in a macro": "{% macro m() %}{% for a in range(99999) %}" + "x" * 1000
    + "{% endfor %}{% endmacro %}{% set y = m() %}",
    "added lists": DOUBLE_LIST.replace("EXPR", "ns.l + ns.l"),
    "a list of lists": DOUBLE_LIST.replace("EXPR", "[ns.l, ns.l]") + "{{ ns.l }}",
    "a tuple of lists": DOUBLE_LIST.replace("EXPR", "(ns.l, ns.l)") + "{{ ns.l | string }}",
    "dictionaries": DOUBLE_LIST.replace("EXPR", "{'a': ns.l, 'b': ns.l}") + "{{ ns.l | tojson }}",
    "made dictionaries": DOUBLE_LIST.replace("EXPR", "dict(a=ns.l, b=ns.l)") + "{{ ns.l ~ '' }}",
    "compared lists": DOUBLE_LIST.replace("EXPR", "[ns.l, ns.l]")
    + DOUBLE_LIST.replace("EXPR", "[ns.l, ns.l]").replace("ns", "ms") + "{{ ns.l == ms.l }}",
}  # fmt: skip

ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "classes by index": "{{ ''['__class__']['__mro__'] }}",
    "classes by attr": "{{ '' | attr('__class__') }}",
    "format's attributes": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "a method kept": "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "the clock's class": "{{ strftime_now.__self__ }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
    "changing a list": "{{ messages.append(1) }}",
    "changing a dictionary": "{{ messages[0].update({'role': 'system'}) }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "printing a function": "{{ range }}",
    "a generator's frame": "{{ (messages | map('upper')).gi_frame }}",
}


def fail(source: str) -> str:
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(source).render(MESSAGES)
    return str(caught.value)


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_programs_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "TIME_LIMIT_S", 0.1)
    assert "processor time" in fail(ENDLESS[name]) or name == "a macro without end"


@pytest.mark.parametrize("name", HUGE)
def test_huge_results_are_refused_before_they_are_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_ITEMS", 1 << 14)  # weighing is slow while memory is traced
    tracemalloc.start()
    try:
        fail(HUGE[name])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 150e6


@pytest.mark.parametrize("name", ESCAPES)
def test_python_is_out_of_reach(name: str) -> None:
    """An error, or undefined, which prints as nothing."""
    try:
        assert ChatTemplate(ESCAPES[name]).render(MESSAGES) == ""
    except ChatTemplateError as error:
        assert "0x" not in str(error)


def test_limits_are_far_from_honest_templates() -> None:
    turns = [Message(role, "word " * 2000) for role in ("user", "assistant")] * 300
    prompt = ChatTemplate.builtin("chatml").render(turns)
    assert len(prompt) > 6_000_000


def test_it_works_in_threads() -> None:
    """No signals: a server renders in its workers."""
    template, prompts = ChatTemplate.builtin("llama3"), []
    messages = [[Message("user", str(index))] for index in range(8)]
    threads = [threading.Thread(target=lambda m=m: prompts.append(template.render(m))) for m in messages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(prompts) == sorted(template.render(m) for m in messages)


def test_a_source_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="1048576 characters"):
        ChatTemplate("x" * (1 << 20) + "y")
    with pytest.raises(ChatTemplateError, match=r"cannot be compiled|failed"):
        ChatTemplate("{{ " + "(" * 5000 + ")" * 5000 + " }}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 2 + 3 * 4 ** 2 % 5 }} {{ 1.5 * 2 }} {{ 7 // 2 }}", "5 3.0 3"),
        ("{{ 'ab' * 2 }} {{ [1] + [2] * 2 }} {{ 'a' ~ 1 ~ none }}", "abab [1, 2, 2] a1None"),
        ("{{ '%s-%03d' % ('a', 7) }} {{ '%s' | format('b') }} {{ '{}:{x}'.format(1, x=2) }}", "a-007 b 1:2"),
        (
            "{{ ['a', 'b'] | join('-') }} {{ '-'.join(['x', 'y']) }} {{ 'a-b'.split('-') }}",
            "a-b x-y ['a', 'b']",
        ),
        ("{{ 'aXbX'.replace('X', '--', 1) }} {{ 'aXb' | replace('X', '-') }}", "a--bX a-b"),
        ("{{ 'a\\nb' | indent(2) }} {{ 'x y' | title }} {{ ' z '.strip() }}", "a\n  b X Y z"),
        (
            "{{ messages | map(attribute='role') | join(',') }} {{ messages | join(',', 'role') }}",
            "user user",
        ),
        ("{{ messages[0]['items'][::-1] }} {{ messages[0].items() | list | length }}", "[3, 2, 1] 3"),
    ],
)
def test_honest_operations_still_work(source: str, expected: str) -> None:
    assert ChatTemplate(source).render(MESSAGES) == expected
