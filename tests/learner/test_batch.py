"""Packing: what shares, what fits, what is left out, and which token predicts which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.learner.batch import Batch, Sample, pack
from etude.learner.learner import Denominators
from etude.model.segments import Segment
from etude.records import EtudeError


def sample(
    prompt: str, completion: str, mask: str | None = None, group: int = 0, **columns: object
) -> Sample:
    """Letters are ids; a mask of "1" and "0", all in by default."""
    ids = tuple(map(ord, completion))
    inside = tuple(letter == "1" for letter in mask) if mask is not None else (True,) * len(ids)
    return Sample(tuple(map(ord, prompt)), ids, inside, group, columns)


def text(ids: torch.Tensor) -> str:
    return "".join(map(chr, ids.tolist()))


def predictions(batch: Batch) -> list[tuple[str, str]]:
    """(everything that the predicting token sees, token) for each of M."""
    chains = [batch.layout.chain(index) for index in range(len(batch.layout.segments))]
    ids = batch.layout.token_ids_T
    pairs = []
    for row, at in zip(batch.rows_M.tolist(), batch.index_M.tolist(), strict=True):
        owner = next(i for i, s in enumerate(batch.layout.segments) if s.start <= row < s.start + s.length)
        seen = ""
        for index in chains[owner]:
            start, length, _ = batch.layout.segments[index]
            seen += text(
                ids[start : min(start + length, row + 1)] if index == owner else ids[start : start + length]
            )
        pairs.append((seen, chr(batch.target_ids_C[at])))
    return pairs


def test_a_group_shares_its_prompt() -> None:
    [batch] = pack([sample("pq", "abc"), sample("pq", "ad"), sample("pq", "e")], max_tokens=100)
    assert batch.layout.segments == (Segment(0, 2, None), Segment(2, 2, 0), Segment(4, 1, 0))
    assert text(batch.layout.token_ids_T) == "pqaba"  # the last token of each predicts nothing
    assert predictions(batch) == [
        ("pq", "a"), ("pqa", "b"), ("pqab", "c"), ("pq", "a"), ("pqa", "d"), ("pq", "e"),
    ]  # fmt: skip
    assert batch.sequence_C.tolist() == [0, 0, 0, 1, 1, 2]


def test_what_no_output_needs_is_not_computed() -> None:
    samples = [sample("pq", "abcdef", "010100"), sample("rs", "xy", "00"), sample("t", "uv")]
    samples[2] = Sample(samples[2].prompt_ids, samples[2].completion_ids, samples[2].mask, 0, skip=True)
    [batch] = pack(samples, max_tokens=100)
    assert batch.indices == (0,)
    assert text(batch.layout.token_ids_T) == "pqabc"
    assert predictions(batch) == [("pqa", "b"), ("pqabc", "d")]
    assert batch.scattered(torch.tensor([5.0, 7.0])).tolist() == [0, 5, 0, 7, 0, 0]


def test_nothing_to_learn_from_is_no_batch() -> None:
    assert pack([sample("p", "ab", "00")], max_tokens=10) == []
    assert pack([], max_tokens=10) == []


def test_to_the_end_reads_every_token() -> None:
    samples = [sample("pq", "ab", "00"), sample("pq", "c", "0"), sample("r", "", "")]
    [batch] = pack(samples, max_tokens=100, to_the_end=True)
    assert batch.last_S is not None
    assert text(batch.layout.token_ids_T[batch.last_S]) == "bcr"
    assert len(batch.rows_M) == 0


def test_a_group_too_large_is_split_between_samples() -> None:
    samples = [sample("pppp", "abc") for _ in range(5)]  # 4 + 2 tokens each
    batches = pack(samples, max_tokens=8)
    assert [batch.n_tokens for batch in batches] == [8, 8, 6]
    assert sorted(index for batch in batches for index in batch.indices) == [0, 1, 2, 3, 4]
    [whole] = pack(samples, max_tokens=8, whole_groups=True)
    assert whole.n_tokens == 14


def test_a_sample_too_large_stands_alone_and_whole() -> None:
    batches = pack([sample("p", "a" * 50), sample("q", "b", group=1)], max_tokens=8)
    assert [batch.n_tokens for batch in batches] == [50, 1]


def test_best_fit() -> None:
    lengths = [7, 5, 3, 3, 2]  # 7 + 3 and 5 + 3 + 2 fit exactly
    samples = [sample("p", "a" * n, group=group) for group, n in enumerate(lengths)]
    assert sorted(batch.n_tokens for batch in pack(samples, max_tokens=10)) == [10, 10]


def test_pairs_with_different_prompts_stay_together() -> None:
    samples = [sample("pq", "a", group=3), sample("rs", "b", group=3), sample("t", "c", group=4)]
    batches = pack(samples, max_tokens=3, whole_groups=True)
    assert [batch.group_S.tolist() for batch in batches] == [[3, 3], [4]]


def test_columns() -> None:
    samples = [
        sample("p", "ab", advantages=1.5, old_logprobs=np.array([1.0, 2.0])),
        sample("p", "c", advantages=-1, old_logprobs=[3.0]),
    ]
    [batch] = pack(samples, max_tokens=10)
    assert batch.columns["advantages"].tolist() == [1.5, -1.0]
    assert batch.columns["old_logprobs"].tolist() == [1.0, 2.0, 3.0]
    assert batch.columns["advantages"].dtype == torch.float32


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (sample("p", "c", old=[1.0]), "different columns"),
        (sample("p", "c", new=[1.0, 2.0]), "2 values for 1 completion"),
        (sample("p", "c", new=1.0), "single number in some"),
    ],
)
def test_columns_that_do_not_fit(second: Sample, message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        pack([sample("p", "a", new=[1.0]), second], max_tokens=10)


def test_samples_that_cannot_be() -> None:
    with pytest.raises(EtudeError, match="mask of 1 for 2"):
        sample("p", "ab", "1")
    with pytest.raises(EtudeError, match="without prompt"):
        sample("", "ab")
    with pytest.raises(EtudeError, match="at least 1 token"):
        pack([], max_tokens=0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["p", "pq", "rst"]), st.text("ab", max_size=6), st.integers(0, 3)),
        max_size=12,
    ),
    st.integers(1, 30),
    st.booleans(),
)
def test_every_token_is_predicted_once_from_all_before_it(
    rows: list[tuple[str, str, int]], max_tokens: int, whole_groups: bool
) -> None:
    samples = [sample(prompt, completion, group=group) for prompt, completion, group in rows]
    batches = pack(samples, max_tokens=max_tokens, whole_groups=whole_groups)
    found = sorted(pair for batch in batches for pair in predictions(batch))
    expected = [
        (prompt + completion[:i], completion[i])
        for prompt, completion, _ in rows
        for i in range(len(completion))
    ]
    assert found == sorted(expected)
    for batch in batches:
        assert batch.n_tokens <= max_tokens or whole_groups or batch.n_samples == 1
    if whole_groups:
        owners = [group for batch in batches for group in set(batch.group_S.tolist())]
        assert len(owners) == len(set(owners))


def test_denominators_count_what_is_skipped() -> None:
    samples = [sample("p", "ab", "10"), sample("p", "abc", group=1)]
    skipped = [Sample(s.prompt_ids, s.completion_ids, s.mask, s.group, skip=True) for s in samples]
    assert Denominators.of(samples, 9) == Denominators.of(skipped, 9) == Denominators(4, 2, 2, 9)
