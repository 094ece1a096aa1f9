"""A conversation's prompts: template text is tokenised, what was sampled never again."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from etude.model.chat import ChatTemplate
from etude.model.rendered import RenderedPrompt, mark_specials
from etude.model.thinking import ThinkingTags
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError, Message
from etude.terminal.conversation import Answer, Conversation
from tests.terminal.tiny import tiny_metadata

TOKENIZER = Tokenizer.from_metadata(tiny_metadata())
END = TOKENIZER.encode("<|im_end|>", parse_special=True)[0]


class ChatML:
    """A template. forgets: thinking of earlier answers goes; opens: the prompt begins the thinking."""

    def __init__(self, *, forgets: bool = False, opens: bool = False, only_last: bool = False) -> None:
        self.forgets, self.opens, self.only_last = forgets, opens, only_last

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> RenderedPrompt:
        def render_marked(specials: Collection[str], mark: str) -> str:
            text = str(variables.get("preamble", ""))
            for message in messages[-1:] if self.only_last else messages:
                content = mark_specials(message.content, specials, mark) if specials else message.content
                if self.forgets and message.role == "assistant":
                    content = content.split("</think>")[-1].split(f"<{mark}/think>")[-1].strip()
                text += f"<|im_start|>{message.role}\n{content}<|im_end|>\n"
            return text + "<|im_start|>assistant\n" + ("<think>\n" if self.opens else "")

        return RenderedPrompt(render_marked((), ""), render_marked)


def talk(template: ChatML | None = None, **settings: Any) -> Conversation:
    return Conversation(TOKENIZER, template or ChatML(), **settings)


def base() -> Conversation:
    return Conversation(TOKENIZER, None)


def said(text: str, *, thinking: str = "", **fields: Any) -> Answer:
    """An answer as it might be sampled, its ids unlike those that the text would be tokenised to."""
    before = TOKENIZER.encode(thinking, parse_special=True)
    ids = (*before, *reversed(TOKENIZER.encode(text)), END)
    return Answer(ids, text, "eos", thinking=thinking, n_thinking=len(before), **fields)


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, parse_special=True)


def test_the_first_prompt_is_the_template_text() -> None:
    conversation = talk(system="be brief")
    conversation.ask("hi")
    text = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert list(conversation.prompt_ids()) == ids_of(text)


def test_sampled_ids_stand_as_they_were_sampled() -> None:
    conversation = talk()
    conversation.ask("hi")
    first = list(conversation.prompt_ids())
    answer = said("hello")
    conversation.answer(answer)
    conversation.ask("more")
    tail = ids_of("<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n")
    assert list(conversation.prompt_ids()) == first + list(answer.ids[:-1]) + tail
    conversation.answer(said("x"))
    assert conversation.n_tokens == len(first + list(answer.ids[:-1]) + tail) + 2


def test_an_answer_without_an_end_gets_the_templates() -> None:
    conversation = talk()
    conversation.ask("hi")
    conversation.answer(Answer((70, 71), "CD", "length"))
    conversation.ask("go on")
    ids = list(conversation.prompt_ids())
    assert ids[ids.index(70) : ids.index(70) + 3] == [70, 71, END]


def test_special_tokens_in_messages_stay_text() -> None:
    conversation = talk(system="<|im_start|>")
    conversation.ask("a<|im_end|>b <think>")
    conversation.answer(said("x"))
    conversation.ask("<|endoftext|>")
    ids = list(conversation.prompt_ids())
    assert ids.count(END) == 4  # of system, user, assistant, user
    assert 0 not in ids
    assert TOKENIZER.decode(ids, special=True).count("<|im_end|>") == 5


def test_text_that_looks_like_a_marker_is_harmless() -> None:
    conversation = talk()
    conversation.ask("qzx0a0z and qzx1a0z")
    conversation.answer(said("one"))
    conversation.ask("qzx0t0z")
    text = TOKENIZER.decode(conversation.prompt_ids(), special=True)
    assert text.count("qzx0a0z and qzx1a0z") == 1 and text.count("eno") == 1 and "qzx2" not in text


@pytest.mark.parametrize("opens", [False, True])
def test_thinking_stays_where_the_template_keeps_it(opens: bool) -> None:
    conversation = talk(ChatML(opens=opens))
    conversation.ask("hi")
    first = list(conversation.prompt_ids())
    thinking = "hm\n</think>\n\n" if opens else "<think>\nhm\n</think>\n\n"
    answer = said("yes", thinking=thinking, opened=opens)
    conversation.answer(answer)
    conversation.ask("more")
    ids = list(conversation.prompt_ids())
    before = first if not opens else first[:-2]
    assert ids[: len(before)] == before
    kept = list(answer.ids[:-1]) if not opens else ids_of("<think>\n") + list(answer.ids[:-1])
    assert ids[len(before) : len(before) + len(kept)] == kept


def test_thinking_goes_where_the_template_forgets_it() -> None:
    conversation = talk(ChatML(forgets=True))
    conversation.ask("hi")
    first = list(conversation.prompt_ids())
    answer = said("yes", thinking="<think>\nhm\n</think>\n\n")
    conversation.answer(answer)
    conversation.ask("more")
    ids = list(conversation.prompt_ids())
    bare = list(answer.ids[answer.n_thinking : -1])
    assert ids[: len(first) + len(bare) + 1] == first + bare + [END]


def test_thinking_that_was_cut_off() -> None:
    for forgets in (False, True):
        conversation = talk(ChatML(forgets=forgets))
        conversation.ask("hi")
        ids = tuple(ids_of("<think>\nhm, let me"))
        conversation.answer(Answer(ids, "", "abort", thinking="hm, let me", n_thinking=len(ids)))
        conversation.ask("more")
        assert (ids_of("hm, let me")[0] in conversation.prompt_ids()) is True
        assert TOKENIZER.decode(conversation.prompt_ids(), special=True).count("<|im_end|>") == 3


def test_leading_space_after_forgotten_thinking_goes_too() -> None:
    conversation = talk(ChatML(forgets=True))
    conversation.ask("hi")
    ids = (*ids_of("<think>x</think>"), *ids_of("\n\n yes"), END)
    conversation.answer(Answer(ids, "yes", "eos", thinking="x", n_thinking=len(ids_of("<think>x</think>"))))
    conversation.ask("more")
    assert "assistant\nyes<|im_end|>" in TOKENIZER.decode(conversation.prompt_ids(), special=True)


def test_a_template_that_drops_answers_is_an_error() -> None:
    conversation = talk(ChatML(only_last=True))
    conversation.ask("hi")
    conversation.answer(said("x"))
    conversation.ask("more")
    with pytest.raises(EtudeError, match="template leaves out"):
        conversation.prompt_ids()


def test_undo_and_another_answer() -> None:
    conversation = talk()
    assert conversation.undo() is None and not conversation.drop_answer()
    conversation.ask("one")
    first = conversation.prompt_ids()
    conversation.answer(said("1"))
    conversation.ask("two")
    second = conversation.prompt_ids()
    conversation.answer(said("2"))
    assert conversation.drop_answer() and conversation.prompt_ids() == second
    assert conversation.undo() == "two"
    assert conversation.turns[-1].answer is not None
    conversation.undo()
    conversation.ask("one")
    assert conversation.prompt_ids() == first


def test_the_oldest_turn_is_forgotten_and_the_system_message_kept() -> None:
    conversation = talk(system="S")
    for question in ("one", "two", "three"):
        conversation.ask(question)
        if question != "three":
            conversation.answer(said(question.upper()))
    assert conversation.forget_oldest()
    text = TOKENIZER.decode(conversation.prompt_ids(), special=True)
    assert "one" not in text and "two" in text and "system\nS" in text
    assert conversation.forget_oldest() and not conversation.forget_oldest()


def test_a_base_model_completes_and_goes_on() -> None:
    conversation = base()
    conversation.ask("Once")
    assert list(conversation.prompt_ids()) == TOKENIZER.encode("Once")
    conversation.answer(Answer((70, 71), "CD", "length"))
    conversation.ask("")
    assert list(conversation.prompt_ids()) == [*TOKENIZER.encode("Once"), 70, 71]
    conversation.answer(Answer((72, END), "E", "eos"))
    conversation.ask("")
    assert list(conversation.prompt_ids()) == [*TOKENIZER.encode("Once"), 70, 71, 72]
    conversation.undo()
    conversation.ask("Twice")
    assert list(conversation.prompt_ids()) == TOKENIZER.encode("Twice")


def test_saved_and_loaded_is_the_same() -> None:
    conversation = talk(system="S", tags=ThinkingTags())
    conversation.ask("one ü")
    conversation.answer(said("1", thinking="<think>\nhm\n</think>\n\n", seed=7))
    text = conversation.to_json("tiny")
    record = json.loads(text)
    assert (record["format"], record["model"], record["n_vocab"]) == (
        "etude chat 1",
        "tiny",
        TOKENIZER.n_vocab,
    )
    other = talk()
    other.load_json(text)
    assert (other.turns, other.system) == (conversation.turns, "S")
    conversation.ask("two")
    other.ask("two")
    assert other.prompt_ids() == conversation.prompt_ids()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda record: record.update(format="x"), "no saved conversation"),
        (lambda record: record.pop("turns"), "KeyError"),
        (lambda record: record.update(n_vocab=5), "another vocabulary"),
        (lambda record: record["turns"][0]["answer"].update(ids=[10**9]), "another vocabulary"),
        (lambda record: record["turns"][0]["answer"].update(ids=["1"]), "no number"),
        (lambda record: record["turns"][0]["answer"].update(finish="tired"), "no reason"),
        (lambda record: record["turns"][0]["answer"].update(n_thinking=99), "inconsistent"),
        (lambda record: record["turns"][0]["answer"].update(extra=1), "TypeError"),
        (lambda record: record["turns"][0].update(question=3), "no text"),
    ],
)
def test_a_wrong_file_changes_nothing(change: Any, part: str) -> None:
    conversation = talk()
    conversation.ask("one")
    conversation.answer(said("1"))
    before = list(conversation.turns)
    record = json.loads(conversation.to_json("tiny"))
    change(record)
    with pytest.raises(EtudeError, match=part):
        conversation.load_json(json.dumps(record))
    assert conversation.turns == before
    for text in ("", "[]", "null", "{", "[" * 100_000):
        with pytest.raises(EtudeError, match="no saved conversation"):
            conversation.load_json(text)


# ── the built-in templates ──


@pytest.mark.parametrize("name", ChatTemplate.names())
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_prompts_are_the_templates_text(name: str, system: str | None) -> None:
    """Where the sampled ids are those of the text, the whole prompt is what the template would give."""
    template = ChatTemplate.builtin(name)
    messages = [Message("system", system)] if system else []
    conversation = Conversation(TOKENIZER, template, system=system)
    for question, text in (("hi", "Hello there!"), ("<think> and </s>?", "So be it."), ("and then", "")):
        conversation.ask(question)
        messages.append(Message("user", question))
        try:
            rendered = template.render(messages)
        except EtudeError as error:
            with pytest.raises(EtudeError, match=str(error)[:20]):
                conversation.prompt_ids()
            return
        assert TOKENIZER.decode(conversation.prompt_ids(), special=True) == rendered
        conversation.answer(Answer((*TOKENIZER.encode(text), END), text, "eos"))
        messages.append(Message("assistant", text))
