"""POST /infill: what stands between a prefix and a suffix, for models that were taught to fill in.

The prompt is llama.cpp's (format_prompt_infill of build 11434):

    [repo] myproject [sep] file … [BOS] [pre] prefix, beginning [suf] suffix [mid]

Of prefix and suffix as much is taken as fits a batch, three parts of the prefix for one of the suffix; other
files fill what is left of the context, the last ones first.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.model.tokenizer import Tokenizer
from etude.serve.models import ServedModel
from etude.serve.native_completion import NativeWork, answer_native
from etude.serve.native_route import native_route, unsupported
from etude.serve.operations import Operation
from etude.serve.server import server_of
from etude.serve.types_native import InfillExtra, InfillRequest

BATCH = 2048
PROJECT, FILE = "myproject\n", "filename\n"
SNIP = "\n\n--- snip ---\n\n"
NEEDED = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}


class InfillWork(NativeWork):
    """A request for what is in between."""

    def __init__(self, asked: InfillRequest) -> None:
        super().__init__(asked, "")
        self._infill = asked

    def prompts(self, model: ServedModel) -> list[tuple[int, ...]]:
        """The one prompt."""
        limit = self.asked.n_predict if self.asked.n_predict is not None else model.defaults.params.max_tokens
        return [infill_ids(self._infill, model.engine.tokenizer, model.engine.context, limit or 0)]


def infill_ids(asked: InfillRequest, tokenizer: Tokenizer, context: int, n_predict: int) -> tuple[int, ...]:
    """The ids. ApiError 501 for a model that cannot fill in."""
    fim = tokenizer.fim_ids
    missing = [f"{word} token is missing. " for kind, word in NEEDED.items() if kind not in fim]
    if missing:
        raise unsupported(f"Infill is not supported by this model: {''.join(missing)}")
    prefix, suffix = text_ids(tokenizer, asked.input_prefix), text_ids(tokenizer, asked.input_suffix)
    beginning = tokenizer.encode(asked.prompt or "", add_special=False, parse_special=True)
    batch = min(BATCH, context)
    prefix = _last(prefix, 3 * (batch // 4))
    suffix = suffix[: max(0, batch // 4 - 2 - len(beginning))]
    others = _last(other_files(asked.input_extra or (), tokenizer), context - batch - 2 * max(n_predict, 0))
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    written = [*others, *bos, fim["fim_pre"], *prefix, *beginning, fim["fim_suf"], *suffix, fim["fim_mid"]]
    return tuple(written)


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of text that is text only."""
    return tokenizer.encode(text, add_special=False)


def other_files(extra: Sequence[InfillExtra], tokenizer: Tokenizer) -> list[int]:
    """Other files of the project, each under its name where the model knows such."""
    fim = tokenizer.fim_ids
    ids: list[int] = []
    if "fim_rep" in fim:
        ids += [fim["fim_rep"], *text_ids(tokenizer, PROJECT)]
    for file in extra:
        if "fim_sep" in fim:
            ids += [fim["fim_sep"], *text_ids(tokenizer, f"{file.filename or 'tmp'}\n")]
        else:
            ids += text_ids(tokenizer, SNIP)
        ids += text_ids(tokenizer, file.text)
    if "fim_sep" in fim:
        ids += [fim["fim_sep"], *text_ids(tokenizer, FILE)]
    return ids


def _last(ids: list[int], n: int) -> list[int]:
    return ids[max(0, len(ids) - max(0, n)) :]


async def infill(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    return await answer_native(request, server, InfillWork(await server.body(request, InfillRequest)))


ROUTES = [native_route("/infill", infill)]
OPERATIONS = (Operation("post", "/infill", "Fill in between two texts", InfillRequest, streams=True),)
