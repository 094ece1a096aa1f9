"""Mutates GGUF files with knowledge of their structure and opens them: nothing but GGUFError may come out.

    python -m tests.model.fuzz_gguf --count 100000

Half of the mutations change what a file says and encode it again, so that the result is often valid and
strange (dimensions, types, missing or doubled keys, odd values); the others change its bytes where the fields
are (counts, lengths, offsets, types), cut it, or graft pieces of another file. Case `i` of seed `s` is always
the same file.

A case passes if the file is refused with a GGUFError, or opens and every tensor can be read; memory beyond a
bound that is proportional to the file's size fails it. Accepted files then go to `forward`, if given: it runs
a model on the path and raises EtudeError where the engine refuses it; anything else fails.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from etude.engine.engine import Engine
from etude.kernels.reference_quants import READABLE_TYPES
from etude.model.gguf import GGUFError, GGUFFile
from etude.model.quants import GGMLType
from etude.records import EtudeError
from tests.model.gguf_samples import (
    ARRAY,
    BOOL,
    CODES,
    FLOAT32,
    FLOAT64,
    STRING,
    UINT32,
    Array,
    Draft,
    Field,
    encode,
    samples,
)

MEMORY_FLOOR_BYTES = 1 << 20
MEMORY_PER_FILE_BYTE = 16
ADDRESS_SPACE_BYTES = 4 << 30
"""Set as a limit in `main`, so that an allocation which tracemalloc does not see fails as well."""

EDGES = (
    0, 1, 2, 3, 5, 7, 8, 9, 31, 32, 33, 63, 64, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x10000,
    0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 40, (1 << 61) - 1, 1 << 61, 1 << 62,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 64, (1 << 64) - 1,
)  # fmt: skip
"""Numbers near which sizes overflow or signs flip."""

TEXTS: tuple[str | bytes, ...] = (
    "", "\0", "a" * 300, b"\xff", b"\xed\xa0\x80", "llama", "gpt2", "gemma3", "%s%n", "{{ 1/0 }}", "../../x",
    "\x1b[2J", "tokenizer.ggml.tokens", "token_embd.weight",
)  # fmt: skip


# ── what a file says ──


def pick_number(rng: random.Random, old: int, bits: int = 64) -> int:
    """A number that may hurt: an edge, or something near `old`."""
    near = (
        old + 1,
        old - 1,
        old * 2,
        old // 2,
        old + 32,
        old - 32,
        -old,
        old << 32,
        old ^ (1 << rng.randrange(bits)),
    )
    number = rng.choice(EDGES) if rng.random() < 0.5 else rng.choice(near)
    return number & ((1 << bits) - 1)


def change_key(rng: random.Random, draft: Draft) -> None:
    if not draft.keys:
        return
    index = rng.randrange(len(draft.keys))
    name, type, value = draft.keys[index]
    action = rng.choice(("drop", "double", "rename", "move", "retype", "value", "value", "value", "value"))
    if action == "drop":
        del draft.keys[index]
    elif action == "double":
        draft.keys.insert(rng.randrange(len(draft.keys)), draft.keys[index])
    elif action == "rename":
        draft.keys[index] = (rng.choice([*TEXTS, draft.keys[0][0]]), type, value)
    elif action == "move":
        draft.keys.insert(rng.randrange(len(draft.keys)), draft.keys.pop(index))
    elif action == "retype":
        draft.keys[index] = (name, *random_value(rng))
    else:
        draft.keys[index] = (name, type, changed_value(rng, type, value))


def random_value(rng: random.Random) -> tuple[int, object]:
    type = rng.choice([*CODES, STRING, ARRAY])
    if type == STRING:
        return type, rng.choice(TEXTS)
    if type == ARRAY:
        item_type = rng.choice([*CODES, STRING, ARRAY])
        if item_type == ARRAY:
            return type, Array(ARRAY, [Array(UINT32, [1, 2])])
        return type, Array(item_type, [scalar(rng, item_type) for _ in range(rng.choice((0, 1, 3, 40)))])
    return type, scalar(rng, type)


def scalar(rng: random.Random, type: int) -> object:
    if type == STRING:
        return rng.choice(TEXTS)
    if type in (FLOAT32, FLOAT64):
        return rng.choice((0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")))
    return fitting(type, pick_number(rng, 1))


def fitting(type: int, number: int) -> int:
    """`number` cut to the bits of an integer type, in its range."""
    size_bits = 8 * np.dtype(CODES[type]).itemsize
    number &= (1 << size_bits) - 1
    return number - (1 << size_bits) if CODES[type].islower() and number >> (size_bits - 1) else number


def changed_value(rng: random.Random, type: int, value: object) -> object:
    if isinstance(value, Array):
        return changed_array(rng, value)
    if type in (FLOAT32, FLOAT64, STRING):
        return scalar(rng, type)
    assert isinstance(value, int)
    return fitting(type, pick_number(rng, value))


def changed_array(rng: random.Random, array: Array) -> Array:
    items = list(array.items)
    action = rng.choice(("empty", "cut", "repeat", "item", "item", "same"))
    if action == "empty" or not items:
        items = []
    elif action == "cut":
        items = items[: rng.randrange(len(items))]
    elif action == "repeat":
        items = items * 2
    elif action == "same":
        items = [items[0]] * len(items)
    elif array.type != ARRAY:
        items[rng.randrange(len(items))] = scalar(rng, array.type)
    return Array(array.type, items)


def change_tensor(rng: random.Random, draft: Draft) -> None:
    if not draft.tensors:
        return
    index = rng.randrange(len(draft.tensors))
    tensor = draft.tensors[index]
    other = rng.choice(draft.tensors)
    action = rng.choice(
        ("drop", "double", "swap", "rename", "move", "dim", "dims", "type", "data", "offset", "offset")
    )
    if action == "drop":
        del draft.tensors[index]
    elif action == "double":
        draft.tensors.insert(rng.randrange(len(draft.tensors)), replace(tensor, dims=[*tensor.dims]))
    elif action == "swap":
        tensor.name, other.name = other.name, tensor.name
    elif action == "rename":
        tensor.name = rng.choice(TEXTS)
    elif action == "move":
        draft.tensors.insert(rng.randrange(len(draft.tensors)), draft.tensors.pop(index))
    elif action == "dim":
        at = rng.randrange(len(tensor.dims)) if tensor.dims else 0
        tensor.dims[at : at + 1] = [pick_number(rng, tensor.dims[at] if tensor.dims else 1)]
    elif action == "dims":
        tensor.dims = rng.choice(
            ([], tensor.dims[::-1], [*tensor.dims, 1], [*tensor.dims, 2, 1, 1, 1], other.dims[:])
        )
    elif action == "type":
        tensor.type = rng.choice([*GGMLType, *range(45), 1 << 31])
    elif action == "data":
        tensor.data = odd_bytes(rng, len(tensor.data))
    else:
        tensor.offset = rng.choice((*EDGES, other.offset or 0, 32 * rng.randrange(2000)))


def odd_bytes(rng: random.Random, count: int) -> bytes:
    return rng.choice((bytes(count), b"\xff" * count, rng.randbytes(count), b"\0\x7c" * (count // 2)))


def change_header(rng: random.Random, draft: Draft) -> None:
    action = rng.choice(("version", "alignment", "n_keys", "n_tensors", "magic"))
    if action == "version":
        draft.version = rng.choice((0, 1, 2, 3, 4, 2 << 24, 3 << 24, 0xFFFFFFFF))
    elif action == "alignment":
        value = rng.choice((*EDGES[:20], 16, 512, 4096))
        draft.keys = [key for key in draft.keys if key[0] != "general.alignment"]
        draft.keys.append(("general.alignment", rng.choice((UINT32, UINT32, UINT32, BOOL, STRING)), ""))
        if draft.keys[-1][1] != STRING:
            draft.keys[-1] = ("general.alignment", UINT32, value)
            draft.alignment = value if 0 < value <= 4096 and rng.random() < 0.8 else draft.alignment
    elif action == "n_keys":
        draft.n_keys = pick_number(rng, len(draft.keys))
    elif action == "n_tensors":
        draft.n_tensors = pick_number(rng, len(draft.tensors))
    else:
        draft.magic = rng.choice((b"FUGG", b"GGUG", b"tjgg", b"PK\3\4", b"\0\0\0\0"))


# ── bytes ──


def change_bytes(rng: random.Random, data: bytearray, fields: Sequence[Field], donor: bytes) -> None:
    """One change in place, at a field of random kind (not at a random field: most are token texts)."""
    kind = rng.choice(sorted({field.kind for field in fields}))
    field = rng.choice([field for field in fields if field.kind == kind])
    start, end = field.start, field.start + field.size
    action = rng.choice(
        ("number", "number", "number", "flip", "copy", "cut", "drop", "insert", "graft", "noise", "tail")
    )
    if action == "number" and field.size in (1, 2, 4, 8):
        old = int.from_bytes(data[start:end], "little")
        data[start:end] = pick_number(rng, old, 8 * field.size).to_bytes(field.size, "little")
    elif action == "flip" and start < len(data):
        data[min(len(data) - 1, start + rng.randrange(max(1, field.size)))] ^= 1 << rng.randrange(8)
    elif action == "copy":
        source = rng.choice([other for other in fields if other.size == field.size])
        data[start:end] = data[source.start : source.start + source.size]
    elif action == "cut":
        del data[max(0, rng.choice((start, end)) + rng.choice((-1, 0, 0, 1, 7))) :]
    elif action == "drop":
        del data[start:end]
    elif action == "insert":
        data[start:start] = odd_bytes(rng, rng.choice((1, 4, 8, 32)))
    elif action == "graft":
        at, length = rng.randrange(len(donor)), rng.randrange(1, 200)
        data[start : start + rng.choice((0, length))] = donor[at : at + length]
    elif action == "noise":
        for _ in range(rng.choice((1, 4, 64))):
            if data:
                data[min(len(data) - 1, int(rng.expovariate(1 / 2000)))] = rng.randrange(256)
    elif action == "tail":
        data += odd_bytes(rng, 32)


def make_case(drafts: Sequence[Draft], donor: bytes, seed: int, index: int) -> bytes:
    """The bytes of one mutated file; `donor` is a file to take pieces of."""
    rng = random.Random(f"{seed} {index}")
    draft = rng.choice(drafts).copy()
    says, bytes_ = rng.choice(((1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (0, 3), (1, 1), (2, 1)))
    for _ in range(says):
        rng.choice((change_key, change_key, change_tensor, change_tensor, change_tensor, change_header))(
            rng, draft
        )
    encoded, fields = encode(draft)
    if not bytes_:
        return encoded
    data = bytearray(encoded)
    for _ in range(bytes_):
        change_bytes(rng, data, fields, donor)
    return bytes(data)


# ── the check ──


@dataclass
class Report:
    """What came of the cases. `problems`: (case, what happened) of those that failed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[int, str]] = field(default_factory=list)
    tensors_read: int = 0
    largest_memory_bytes: int = 0
    largest_memory_ratio: float = 0.0
    digest: str = ""


def read_all(file: GGUFFile) -> int:
    """Every tensor's bytes, and the values of those with a readable type; how many tensors."""
    for name, info in file.tensors.items():
        data = file.data(name)
        assert data.size == info.size_bytes
        assert data.flags.writeable is False
        if info.type in READABLE_TYPES:
            values = file.dequantize(name)
            assert values.shape == info.shape
            assert values.dtype == np.float32
        file.release(name)
    return len(file.tensors)


def open_measured(path: Path, size_bytes: int, report: Report) -> GGUFFile:
    """Open, and fail if that took more memory than the file's size warrants."""
    tracemalloc.start()
    try:
        return GGUFFile.open(path)
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        allowed_bytes = MEMORY_FLOOR_BYTES + MEMORY_PER_FILE_BYTE * size_bytes
        report.largest_memory_bytes = max(report.largest_memory_bytes, peak_bytes)
        report.largest_memory_ratio = max(report.largest_memory_ratio, peak_bytes / max(size_bytes, 4096))
        if peak_bytes > allowed_bytes:
            raise MemoryError(f"{peak_bytes} bytes were allocated for a file of {size_bytes}")


def check_case(path: Path, report: Report, size_bytes: int, forward: Callable[[Path], None] | None) -> str:
    """Open the file at `path` and use it. What came of it; exceptions that should not be go through."""
    try:
        file = open_measured(path, size_bytes, report)
    except GGUFError as error:
        assert str(error).startswith(str(path)), f"the error names no file: {error}"
        reason = re.sub(r"b?(['\"]).*?\1|\[.*?\]|\d+", "…", str(error)[len(str(path)) + 2 :])
        report.reasons[reason] += 1
        return "refused"
    with file:
        report.tensors_read += read_all(file)
    if forward is None:
        return "accepted"
    try:
        forward(path)
    except EtudeError:
        return "accepted, refused by the engine"
    return "accepted, forward ran"


def run(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    first: int = 0,
    forward: Callable[[Path], None] | None = None,
    progress: bool = False,
) -> Report:
    """Check cases `first` to `first + count`. A failing case stays in `folder` as case-N.gguf."""
    drafts = samples()
    donor, _ = encode(drafts[-1])
    report, digest = Report(), hashlib.sha256()
    path = folder / "case.gguf"
    started = time.monotonic()
    for index in range(first, first + count):
        data = make_case(drafts, donor, seed, index)
        path.unlink(missing_ok=True)  # a new file: mappings of the last one may be alive
        path.write_bytes(data)
        try:
            outcome = check_case(path, report, len(data), forward)
        except Exception as error:
            outcome = "failed"
            report.problems.append((index, f"{type(error).__name__}: {error}"))
            path.rename(folder / f"case-{index}.gguf")
        report.outcomes[outcome] += 1
        digest.update(f"{index} {outcome} {hashlib.sha256(data).hexdigest()}".encode())
        if progress and index % 5000 == 4999:
            print(
                f"{index + 1} cases, {time.monotonic() - started:.0f} s, {dict(report.outcomes)}", flush=True
            )
    path.unlink(missing_ok=True)
    report.digest = digest.hexdigest()[:16]
    return report


def generate_two_tokens(path: Path) -> None:
    """Prompt and decode on an accepted file. EtudeError where the engine refuses the model."""
    with Engine.load(path, threads=1, context=64, cache_tokens=64) as engine:
        engine.generate([[1, 2, 3]], max_tokens=2, seed=1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="cases to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other files")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first case, to repeat a failing one"
    )
    parser.add_argument("--forward", action="store_true", help="run the engine on accepted files")
    parser.add_argument("--keep", type=Path, help="folder for failing files (default: a temporary one)")
    options = parser.parse_args(arguments)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-gguf-"))
    folder.mkdir(parents=True, exist_ok=True)
    forward = generate_two_tokens if options.forward else None
    report = run(
        folder, options.count, seed=options.seed, first=options.first, progress=True, forward=forward
    )
    print(f"seed {options.seed}, {options.count} cases, digest {report.digest}: {dict(report.outcomes)}")
    print(f"{report.tensors_read} tensors read, {len(report.reasons)} different reasons to refuse")
    memory_bytes, ratio = report.largest_memory_bytes, report.largest_memory_ratio
    print(f"memory to open a file: at most {memory_bytes} bytes, and {ratio:.1f} times its size")
    for reason, times in report.reasons.most_common():
        print(f"{times:8} {reason[:120]}")
    for index, problem in report.problems[:20]:
        print(f"FAILED case {index}: {problem} ({folder / f'case-{index}.gguf'})")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
