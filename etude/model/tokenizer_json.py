"""Hugging Face's tokenizer.json ↔ the tokenizer keys of a GGUF file.

A folder is read by turning it into those keys, so that there is one tokenizer for both kinds of model. The
way back serves libraries that want the JSON format, and folders that are saved after training.

Like llama.cpp, and unlike the other library, no Unicode normalisation (Qwen's NFC) is done: a text has the
same ids under a folder and under the GGUF file made of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.model.pretokenizers import HUB_PATTERNS, PRETOKENIZERS
from etude.model.vocabulary import SPACE, STRIP_RIGHT_KEY, Kind, Vocabulary
from etude.records import EtudeError

PREFIX = "tokenizer.ggml."


def metadata_from_folder(folder: Path) -> dict[str, Any]:
    """The `tokenizer.*` keys for a folder. EtudeError if it has no tokenizer.json, or of another kind."""
    source = _read_json(folder / "tokenizer.json")
    config = _read_json(folder / "tokenizer_config.json", optional=True)
    model = source.get("model", {})
    if model.get("type", "BPE") != "BPE":
        raise EtudeError(f"{folder}: tokenizer.json holds a {model.get('type')!r} model. Supported: BPE")
    texts, kinds = _tokens(source, _read_json(folder / "config.json", optional=True))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    metadata: dict[str, Any] = {f"{PREFIX}tokens": texts, f"{PREFIX}token_type": kinds}
    if model.get("byte_fallback"):
        metadata |= {f"{PREFIX}model": "llama", f"{PREFIX}scores": _scores(texts, model["merges"])}
        metadata[f"{PREFIX}add_space_prefix"] = _adds_space(source)
    else:
        metadata |= {
            f"{PREFIX}model": "gpt2",
            f"{PREFIX}merges": merges,
            f"{PREFIX}pre": _recognise(source, folder),
        }
    ids = {text: index for index, text in enumerate(texts)}
    for key, token in (
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
        ("padding", "pad_token"),
    ):
        text = _token_text(config.get(token))
        if text in ids:
            metadata[f"{PREFIX}{key}_token_id"] = ids[text]
    metadata |= _added_ends(source, config, metadata) | _stripping(source, folder)
    return metadata | _chat_templates(folder, config)


def tokenizer_json(
    metadata: Mapping[str, Any], vocabulary: Vocabulary, *, add_bos: bool, add_eos: bool
) -> str:
    """tokenizer.json for a tokenizer from GGUF metadata."""
    sentencepiece = vocabulary.model == "llama"
    added = [
        {
            "id": index, "content": vocabulary.texts[index], "single_word": False, "lstrip": False,
            "rstrip": index in vocabulary.strip_right, "normalized": False,
            "special": vocabulary.is_special(index),
        }
        for index, kind in enumerate(vocabulary.kinds)
        if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    ]  # fmt: skip
    model: dict[str, Any] = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": sentencepiece, "byte_fallback": sentencepiece,
        "ignore_merges": False, "vocab": dict(vocabulary.ids), "merges": [],
    }  # fmt: skip
    result: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": None, "post_processor": _post_processor(vocabulary, add_bos, add_eos),
        "decoder": None, "model": model,
    }  # fmt: skip
    if sentencepiece:
        prefix = bool(metadata.get(f"{PREFIX}add_space_prefix", True))
        model["merges"] = merges_from_scores(vocabulary, metadata[f"{PREFIX}scores"])
        result |= _sentencepiece_steps(prefix)
    else:
        pre = metadata.get(f"{PREFIX}pre", "default")
        model["merges"] = [merge.split(" ", 1) for merge in metadata[f"{PREFIX}merges"]]
        model["ignore_merges"] = PRETOKENIZERS[pre].ignore_merges
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        splits = [
            {"type": "Split", "pattern": {"Regex": _plain(pattern)}, "behavior": "Isolated", "invert": False}
            for pattern in HUB_PATTERNS.get(pre, PRETOKENIZERS[pre].patterns)
        ]
        result["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, byte_level]}
        result["decoder"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
    return json.dumps(result, ensure_ascii=False)


def merges_from_scores(vocabulary: Vocabulary, scores: Sequence[float]) -> list[list[str]]:
    """The pairs that form each token of a SentencePiece vocabulary, best score first.

    A pair of tokens merges where its concatenation is a token; the score of that token ranks it.
    """
    ids = vocabulary.ids
    ranked = []
    for text, index in ids.items():
        if vocabulary.kinds[index] not in (Kind.NORMAL, Kind.USER_DEFINED):
            continue
        cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = sorted((ids[left], ids[right]) for left, right in cuts if left in ids and right in ids)
        ranked += [(-scores[index], index, pair) for pair in pairs]
    ranked.sort()
    return [[vocabulary.texts[left], vocabulary.texts[right]] for _, _, (left, right) in ranked]


def _plain(pattern: str) -> str:
    r"""A pattern with characters for \u and \U escapes, the longer of which that library does not know."""
    escape = re.compile(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")
    return escape.sub(lambda match: chr(int(match[1] or match[2], 16)), pattern)


def _sentencepiece_steps(prefix: bool) -> dict[str, Any]:
    """Normalizer and decoder: ▁ for spaces, one before the text if `prefix`; bytes for rare characters."""
    to_space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    from_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    first = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, to_space]},
        "decoder": {
            "type": "Sequence",
            "decoders": [from_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
    }


def _post_processor(vocabulary: Vocabulary, add_bos: bool, add_eos: bool) -> dict[str, Any] | None:
    ends = [(vocabulary.bos_id if add_bos else None), (vocabulary.eos_id if add_eos else None)]
    if ends == [None, None]:
        return None

    def special(index: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": vocabulary.texts[index], "type_id": 0}}

    text: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    single = (
        [special(i) for i in ends[:1] if i is not None]
        + text
        + [special(i) for i in ends[1:] if i is not None]
    )
    tokens = {
        vocabulary.texts[i]: {"id": vocabulary.texts[i], "ids": [i], "tokens": [vocabulary.texts[i]]}
        for i in ends
        if i is not None
    }
    second = [{"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": single + second, "special_tokens": tokens}


def _tokens(source: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Texts and kinds by id; ids of the model without a token get a name and the kind UNUSED."""
    vocabulary, added = source["model"]["vocab"], source.get("added_tokens", [])
    by_id = {index: (text, Kind.NORMAL) for text, index in vocabulary.items()}
    if source["model"].get("byte_fallback"):
        for byte in range(256):
            text = f"<0x{byte:02X}>"
            if text in vocabulary:
                by_id[vocabulary[text]] = (text, Kind.BYTE)
    for token in added:
        special = token["special"]
        content = token["content"] if special else token["content"].replace(SPACE, " ")
        by_id[token["id"]] = (content, Kind.CONTROL if special else Kind.USER_DEFINED)
    count = max(max(by_id) + 1, int(config.get("vocab_size") or 0))
    rows = [by_id.get(index, (f"[PAD{index}]", Kind.UNUSED)) for index in range(count)]
    return [text for text, _ in rows], [int(kind) for _, kind in rows]


def _stripping(source: Mapping[str, Any], folder: Path) -> dict[str, list[int]]:
    """Which added tokens swallow the whitespace after them. EtudeError for other ways to match."""
    added = source.get("added_tokens", [])
    for token in added:
        if token.get("lstrip") or token.get("single_word"):
            raise EtudeError(
                f"{folder}: token {token['content']!r} has lstrip or single_word, which is not supported"
            )
    found = [token["id"] for token in added if token.get("rstrip")]
    return {STRIP_RIGHT_KEY: found} if found else {}


def _scores(texts: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """Scores that rank tokens as the merges do: minus the place of the first merge that forms the token."""
    places: dict[str, int] = {}
    for place, merge in enumerate(merges):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        places.setdefault(left + right, place)
    return [-float(places.get(text, len(merges))) for text in texts]


def _adds_space(source: Mapping[str, Any]) -> bool:
    """Whether a space goes before the text: a Prepend step, or a Metaspace step not told otherwise."""
    for step in (*_steps(source.get("normalizer")), *_steps(source.get("pre_tokenizer"))):
        if step["type"] == "Prepend":
            return True
        if step["type"] == "Metaspace":
            return step.get("prepend_scheme", "always") != "never" and bool(
                step.get("add_prefix_space", True)
            )
    return False


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer or post-processor as a flat list."""
    if not step:
        return []
    inner = next((step[key] for key in ("pretokenizers", "normalizers", "processors") if key in step), None)
    return [step] if inner is None else [part for each in inner for part in _steps(each)]


def _recognise(source: Mapping[str, Any], folder: Path) -> str:
    """The name of the pre-tokenizer whose steps these are."""
    patterns: list[str] = []
    for step in _steps(source.get("pre_tokenizer")):
        if step["type"] == "Split":
            patterns.append(step["pattern"].get("Regex") or step["pattern"].get("String", ""))
        elif step["type"] == "Digits" and step.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif step["type"] == "ByteLevel" and step.get("use_regex", True):
            patterns.append(HUB_PATTERNS["gpt-2"][0])
    for name, known in HUB_PATTERNS.items():
        if tuple(patterns) == known:
            return name
    known_names = ", ".join(HUB_PATTERNS)
    raise EtudeError(
        f"{folder}: the pre-tokenizer in tokenizer.json is not known: {patterns}. Known: {known_names}"
    )


def _added_ends(
    source: Mapping[str, Any], config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, bool]:
    """add_bos_token and add_eos_token: as tokenizer_config.json says, or else what the post-processor
    puts."""
    ends: dict[str, bool] = {}
    for key, place in (("bos", 0), ("eos", -1)):
        index = metadata.get(f"{PREFIX}{key}_token_id")
        asked = config.get(f"add_{key}_token")
        if asked is None:
            templates = [step["single"] for step in _steps(source.get("post_processor")) if "single" in step]
            asked = any("SpecialToken" in template[place] for template in templates)
        ends[f"{PREFIX}add_{key}_token"] = bool(asked) and index is not None
    return ends


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """chat_template.jinja, or the template or named templates of tokenizer_config.json, under GGUF's keys."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return {"tokenizer.chat_template": file.read_text(encoding="utf-8")}
    found = config.get("chat_template")
    if isinstance(found, str):
        return {"tokenizer.chat_template": found}
    named = {entry["name"]: entry["template"] for entry in found or ()}
    return {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): template
        for name, template in named.items()
    }


def _token_text(token: Any) -> str | None:
    """A token of tokenizer_config.json, which is a text or a record with one."""
    return token.get("content") if isinstance(token, Mapping) else token


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise EtudeError(f"{path} is missing: a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise EtudeError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise EtudeError(f"{path} does not hold a JSON object")
    return content
