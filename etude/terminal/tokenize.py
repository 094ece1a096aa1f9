"""`etude tokenize`: text to token ids, and back. Reads the vocabulary and not the weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from etude.model.checkpoint import HFFolder, open_source
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError
from etude.terminal.model import model_path
from etude.terminal.options import Options, UsageError
from etude.terminal.text_source import given_text


def run(options: Options) -> int:
    """The verb."""
    tokenizer = load_tokenizer(options)
    if options["decode"] is not None:
        for key in ("prompt", "file", "stdin", "ids", "json", "show_count", "bos", "parse_special"):
            if options.given(key):
                raise options.error(key, "no effect with --decode, which turns ids into text")
        print(decode(tokenizer, options["decode"]))
        return 0
    text = given_text(options)
    if text is None:
        raise UsageError("there is no text: give -p TEXT, -f FILE or --stdin")
    ids = tokenizer.encode(text, add_special=options["bos"], parse_special=options["parse_special"])
    show(tokenizer, ids, options)
    return 0


def load_tokenizer(options: Options) -> Tokenizer:
    """The tokenizer of the command line's model, without its weights."""
    path = model_path(options)
    if path.is_dir():
        return Tokenizer.from_folder(path)
    with open_source(path) as source:
        assert not isinstance(source, HFFolder)
        return Tokenizer.from_metadata(source.metadata)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Ids to text, control tokens shown."""
    for token_id in ids:
        if token_id >= tokenizer.n_vocab:
            raise EtudeError(
                f"token {token_id} does not exist: this vocabulary has ids 0 to {tokenizer.n_vocab - 1}"
            )
    return tokenizer.decode(ids, special=True)


def show(tokenizer: Tokenizer, ids: Sequence[int], options: Options) -> None:
    """The ids in the form that the flags ask for."""
    if options["json"] and options["ids"]:
        raise options.error("ids", "the output has one form, and --json gave it already")
    pieces = [tokenizer.decode([token_id], special=True) for token_id in ids]
    if options["json"]:
        sys.stdout.write(json.dumps({"n_tokens": len(ids), "ids": list(ids), "pieces": pieces}) + "\n")
    elif options["ids"]:
        print(list(ids))
    elif not options["show_count"]:
        for token_id, piece in zip(ids, pieces, strict=True):
            print(f"{token_id:>7} -> {piece!r}")
    if options["show_count"] and not options["json"]:
        print(len(ids) if not options["ids"] else f"tokens: {len(ids)}")
