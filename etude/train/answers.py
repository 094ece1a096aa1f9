"""Given answers → token ids and masks: what training on text needs, where nothing was sampled.

An answer is written as the model would sample it: after the very prompt that inference gives for the messages
before it, up to and including the token that ends the turn, tokenised apart from the prompt. So what is
learned is what is asked for later, whatever a chat template does to earlier turns:

    Hi → Hello!<|im_end|>              one sample, if the second prompt begins with the first sample's ids;
    Hi, Hello!, Bye → Ciao!<|im_end|>  two, where the template drops something (thoughts, say) of old turns

The loss counts the marked tokens only: `Hello!<|im_end|>` and `Ciao!<|im_end|>`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from etude.learner.batch import Sample
from etude.model.chat import ChatTemplate
from etude.model.gguf import GGUFFile
from etude.model.rendered import RenderedPrompt
from etude.model.thinking import KNOWN_TAGS
from etude.model.tokenizer import Tokenizer
from etude.model.tokenizer_json import metadata_from_folder
from etude.model.transformer import Source
from etude.records import EtudeError, Message, Problem
from etude.rollout.prompts import TEXT, Codec, PromptWriter

MARK = "qzxanswerxzq"
"""Stands for an answer while the template shows what it puts behind it."""


def prompt_writer(source: Source, chat_template: str | None = None) -> PromptWriter:
    """How messages become ids of a model. chat_template: as in `ModelSettings`."""
    metadata = source.metadata if isinstance(source, GGUFFile) else metadata_from_folder(source.path)
    if chat_template is None:
        template = ChatTemplate.from_metadata(metadata)
    else:
        template = None if chat_template == "none" else ChatTemplate.builtin(chat_template)
    return PromptWriter(Tokenizer.from_metadata(metadata), template)


def conversation_samples(
    prompts: PromptWriter, messages: Sequence[Message], learned: Sequence[bool], *, group: int, name: str
) -> list[Sample]:
    """A conversation as samples whose masks let in the answers that are `learned`, and nothing else.

    Messages of other roles than the assistant's are never learned. Plain text alone is learned whole, after
    its first token. EtudeError names the conversation.
    """
    if len(messages) == 1 and messages[0].role == TEXT:
        return [text_sample(prompts.codec, messages[0].content, group=group, name=name)]
    samples: list[Sample] = []
    for at, (message, wanted) in enumerate(zip(messages, learned, strict=True)):
        if not wanted or message.role not in ("assistant", TEXT):
            continue
        if at == 0:
            raise EtudeError(f"{name}: it begins with an answer; there must be a message before it")
        prompt_ids = opening_ids(prompts, messages[:at], name)
        reply_ids = answer_ids(prompts, messages[:at], message, name)
        last = samples[-1] if samples else None
        so_far = () if last is None else last.prompt_ids + last.completion_ids
        if last is not None and prompt_ids[: len(so_far)] == so_far:
            between = prompt_ids[len(so_far) :]
            ids = last.completion_ids + between + reply_ids
            mask = last.mask + (False,) * len(between) + (True,) * len(reply_ids)
            samples[-1] = Sample(last.prompt_ids, ids, mask, group)
        else:
            samples.append(Sample(prompt_ids, reply_ids, (True,) * len(reply_ids), group))
    if not samples:
        raise EtudeError(f"{name}: it has no answer of the assistant, so there is nothing to learn")
    return samples


def text_sample(codec: Codec, text: str, *, group: int, name: str) -> Sample:
    """Plain text and the end token. The first token (BOS, if the tokenizer puts one) is not predicted."""
    ids = tuple(codec.encode(text))
    if not ids or ids == (codec.bos_id,):
        raise EtudeError(f"{name}: its text is empty")
    ids += (end_id(codec),) * (ids[-1] != codec.eos_id)
    return Sample(ids[:1], ids[1:], (True,) * (len(ids) - 1), group)


def opening_ids(prompts: PromptWriter, messages: Sequence[Message], name: str) -> tuple[int, ...]:
    """The prompt that inference gives for these messages."""
    return prompts.opening(Problem(name, tuple(messages))).ids


def answer_ids(
    prompts: PromptWriter, messages: Sequence[Message], answer: Message, name: str
) -> tuple[int, ...]:
    """An answer to these messages as the model would sample it, the token that ends it included.

    Thoughts, in `reasoning_content` or between tags in the text, are kept whole, whether or not the template
    would show them.
    """
    template, codec = prompts.template, prompts.codec
    if template is None or messages[0].role == TEXT:
        return (*_encoded(codec, answer.content), end_id(codec))
    opening = template.render(messages, **prompts.variables)
    shown = [*messages, answer]
    whole = template.render(shown, add_generation_prompt=False, **prompts.variables)
    kept = (answer.content.strip(), (answer.reasoning_content or "").strip())
    if whole.startswith(opening) and all(text in whole[len(opening) :] for text in kept):
        ids = _inside(codec, codec.encode_rendered(_after(whole, opening, name)))
        end = next((at for at, token in enumerate(ids) if token in codec.eog_ids), None)
        if end is not None:
            return ids[: end + 1]
        stripped = codec.encode_rendered(_after(whole, opening, name, stripped=True))
        return (*_inside(codec, stripped), end_id(codec))
    text = _as_sampled(answer, template, template.opens_thinking(opening))
    return (*_encoded(codec, text), _end_of_turn(prompts, template, messages))


def end_id(codec: Codec) -> int:
    """The token that ends a text."""
    if codec.eos_id is None:
        raise EtudeError("the tokenizer has no end-of-sequence token, so no answer can be seen to end")
    return codec.eos_id


def _as_sampled(answer: Message, template: ChatTemplate, opened: bool) -> str:
    """The text of a reply. opened: the prompt has begun the thoughts already."""
    tags = template.tags or KNOWN_TAGS[0]
    text = answer.content.strip()
    if answer.reasoning_content is not None:
        text = f"{tags.open}\n{answer.reasoning_content.strip()}\n{tags.close}\n\n{text}"
    if not opened:
        return text
    if text.startswith(tags.open):
        return text.removeprefix(tags.open).lstrip()
    return text if tags.close in text else f"{tags.close}\n\n{text}"


def _end_of_turn(prompts: PromptWriter, template: ChatTemplate, messages: Sequence[Message]) -> int:
    """The token that the template puts behind an answer."""
    shown = [*messages, Message("assistant", MARK)]
    whole = template.render(shown, add_generation_prompt=False, **prompts.variables)
    tail = RenderedPrompt(whole.partition(MARK)[2], lambda specials, mark: whole.partition(MARK)[2])
    codec = prompts.codec
    return next((token for token in codec.encode_rendered(tail) if token in codec.eog_ids), end_id(codec))


def _after(
    whole: RenderedPrompt, opening: RenderedPrompt, name: str, stripped: bool = False
) -> RenderedPrompt:
    """What `whole` has behind `opening`; special texts in messages stay text."""

    def rest(text: str, start: str) -> str:
        if not text.startswith(start):
            raise EtudeError(
                f"{name}: the chat template changes special texts in its messages; remove them from the data"
            )
        return text[len(start) :].rstrip() if stripped else text[len(start) :]

    def marked(specials: Collection[str], mark: str) -> str:
        return rest(whole._render_marked(specials, mark), opening._render_marked(specials, mark))

    return RenderedPrompt(rest(whole, opening), marked)


def _encoded(codec: Codec, text: str) -> tuple[int, ...]:
    """The ids of a text that has others before it, without what a tokenizer puts around every text."""
    ids = _inside(codec, codec.encode(text))
    return ids[:-1] if ids and ids[-1] == codec.eos_id else ids


def _inside(codec: Codec, ids: Sequence[int]) -> tuple[int, ...]:
    """Without the BOS that a tokenizer puts before every text."""
    return tuple(ids[1:] if ids and ids[0] == codec.bos_id else ids)
