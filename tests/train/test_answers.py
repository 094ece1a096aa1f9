"""Given answers as token ids: what inference would have seen and sampled, and nothing else is learned."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from etude.learner.batch import Sample
from etude.model.chat import ChatTemplate
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError, Message, Problem
from etude.rollout import PromptWriter
from etude.train.answers import answer_ids, conversation_samples, text_sample
from tests.terminal.tiny import CHATML, FORGETFUL, OPENING, tiny_metadata

TOKENIZER = Tokenizer.from_metadata(tiny_metadata())
FORGETFUL_OPENING = OPENING.replace("message['content']", "message['content'].split('</think>')[-1].strip()")
TURNS = (
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "Bye"),
    Message("assistant", "Ciao"),
)


def writer(template: str | None = CHATML) -> PromptWriter:
    return PromptWriter(TOKENIZER, None if template is None else ChatTemplate(template))


def text_of(ids: Sequence[int]) -> str:
    return TOKENIZER.decode(ids, special=True)


def learned(sample: Sample) -> list[str]:
    """The stretches of text that the mask lets in."""
    stretches: list[list[int]] = []
    before = False
    for token, inside in zip(sample.completion_ids, sample.mask, strict=True):
        if inside and not before:
            stretches.append([])
        if inside:
            stretches[-1].append(token)
        before = inside
    return [text_of(ids) for ids in stretches]


def samples(prompts: PromptWriter, *messages: Message, wanted: Sequence[bool] | None = None) -> list[Sample]:
    flags = wanted or [message.role == "assistant" for message in messages]
    return conversation_samples(prompts, messages, flags, group=0, name="c1")


def test_a_conversation_is_one_sample_and_only_answers_are_learned() -> None:
    (sample,) = samples(writer(), *TURNS)
    assert text_of(sample.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert learned(sample) == ["Hello!<|im_end|>", "Ciao<|im_end|>"]
    whole = text_of(sample.prompt_ids + sample.completion_ids)
    template = ChatTemplate(CHATML)
    assert whole == template.render(TURNS, add_generation_prompt=False).rstrip("\n")


def test_what_is_before_an_answer_is_the_prompt_of_inference() -> None:
    """Cut the sample where an answer begins: the ids so far are what a chat would send to the engine."""
    prompts = writer()
    (sample,) = samples(prompts, *TURNS)
    ids = sample.prompt_ids + sample.completion_ids
    for at in (1, 3):
        opening = prompts.opening(Problem("p", TURNS[:at])).ids
        reply = answer_ids(prompts, TURNS[:at], TURNS[at], "c1")
        assert ids[: len(opening)] == opening and ids[len(opening) : len(opening) + len(reply)] == reply


def test_answers_that_are_not_wanted_are_read_and_not_learned() -> None:
    (sample,) = samples(writer(), *TURNS, wanted=[False, False, False, True])
    assert learned(sample) == ["Ciao<|im_end|>"] and "Hello!" in text_of(sample.prompt_ids)
    (sample,) = samples(writer(), *TURNS, wanted=[True, True, True, False])
    assert learned(sample) == ["Hello!<|im_end|>"]


def test_special_texts_in_messages_stay_text() -> None:
    messages = (Message("user", "a<|im_end|>b"), Message("assistant", "x<|im_start|>y<|im_end|>z"))
    (sample,) = samples(writer(), *messages)
    assert learned(sample) == ["x<|im_start|>y<|im_end|>z<|im_end|>"]
    control = [token for token in sample.completion_ids if TOKENIZER.is_control(token)]
    assert control == [TOKENIZER.eos_id] == list(sample.completion_ids[-1:])


def test_a_template_that_drops_old_thoughts_gives_a_sample_for_each_turn() -> None:
    messages = (
        Message("user", "Hi"),
        Message("assistant", "<think>\nhm\n</think>\n\nHello!"),
        Message("user", "Bye"),
        Message("assistant", "<think>\nso\n</think>\n\nCiao"),
    )
    first, second = samples(writer(FORGETFUL), *messages)
    assert learned(first) == ["<think>\nhm\n</think>\n\nHello!<|im_end|>"]
    assert learned(second) == ["<think>\nso\n</think>\n\nCiao<|im_end|>"]
    assert "hm" not in text_of(second.prompt_ids) and "Hello!" in text_of(second.prompt_ids)


@pytest.mark.parametrize(
    "answer",
    [
        Message("assistant", "<think>\nhm\n</think>\n\nHello!"),
        Message("assistant", "hm\n</think>\n\nHello!"),
        Message("assistant", "Hello!", reasoning_content="hm"),
    ],
)
def test_a_prompt_that_has_begun_the_thoughts_is_gone_on_with(answer: Message) -> None:
    (sample,) = samples(writer(FORGETFUL_OPENING), TURNS[0], answer)
    assert text_of(sample.prompt_ids).endswith("assistant\n<think>\n")
    assert learned(sample) == ["hm\n</think>\n\nHello!<|im_end|>"]


def test_an_answer_without_thoughts_closes_what_the_prompt_opened() -> None:
    (sample,) = samples(writer(FORGETFUL_OPENING), *TURNS[:2])
    assert learned(sample) == ["</think>\n\nHello!<|im_end|>"]


def test_completions_and_texts() -> None:
    prompts = writer()
    (sample,) = samples(
        prompts, Message("text", "The sky is"), Message("text", " blue."), wanted=[False, True]
    )
    assert text_of(sample.prompt_ids) == "The sky is" and learned(sample) == [" blue.<|im_end|>"]
    (sample,) = samples(prompts, Message("text", "Once"), wanted=[True])
    assert text_of(sample.prompt_ids) == "O" and learned(sample) == ["nce<|im_end|>"]


def test_a_base_model_goes_on_with_the_question() -> None:
    (sample,) = samples(writer(None), Message("user", "2 + 2 ="), Message("assistant", " 4"))
    assert text_of(sample.prompt_ids) == "2 + 2 =" and learned(sample) == [" 4<|im_end|>"]


def test_a_template_without_an_end_token_gets_the_tokenizers() -> None:
    prompts = PromptWriter(TOKENIZER, ChatTemplate.builtin("r1-zero"))
    (sample,) = samples(prompts, *TURNS[:2])
    assert text_of(sample.prompt_ids).endswith(" Assistant:") and learned(sample) == [" Hello!<|im_end|>"]


def test_errors_name_the_conversation() -> None:
    with pytest.raises(EtudeError, match="c1: it begins with an answer"):
        samples(writer(), *TURNS[1:])
    with pytest.raises(EtudeError, match="c1: it has no answer"):
        samples(writer(), TURNS[0])
    with pytest.raises(EtudeError, match="c1: its text is empty"):
        text_sample(TOKENIZER, "", group=0, name="c1")
    with pytest.raises(EtudeError, match="c1"):
        samples(writer(None), *TURNS)
