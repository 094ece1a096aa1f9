"""The quick dequantisers give the bits of the numpy specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from etude.engine.weights import PACKED
from etude.kernels import reference_quants
from etude.learner.dequantize import QUICK_TYPES, VALUES_AT_ONCE, _in_pieces, _in_torch, dequantize
from etude.model.quants import GGMLType, block_size, row_bytes


def specification(kind: GGMLType, raw: np.ndarray, k: int) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(reference_quants.dequantize(int(kind), raw.reshape(-1), (len(raw), k)))


@pytest.mark.parametrize("how", ["on the CPU", "where the native module is not"])
@pytest.mark.parametrize("kind", sorted(QUICK_TYPES), ids=lambda kind: kind.name)
def test_equal_bits(kind: GGMLType, how: str) -> None:
    """Random bytes are blocks with every code and every scale: infinite, NaN and denormal ones too."""
    k = 512
    n = VALUES_AT_ONCE // k + 5  # more than one piece, and a part of one
    raw = np.random.default_rng(int(kind)).integers(0, 256, (n, row_bytes(kind, k)), np.uint8)
    expected = specification(kind, raw, k)
    out = torch.empty(n, k)
    if how == "on the CPU":
        found = dequantize(kind, torch.from_numpy(raw), out)
    else:
        found = _in_pieces(kind, torch.from_numpy(raw), out, _in_torch)
    finite = ~expected.isnan()
    assert torch.equal(found.isnan(), ~finite)
    assert torch.equal(found[finite].view(torch.int32), expected[finite].view(torch.int32))


def test_into_a_part_of_a_wider_matrix() -> None:
    raw = np.random.default_rng(0).integers(0, 100, (8, row_bytes(GGMLType.Q8_0, 64)), np.uint8)
    wide = torch.zeros(8, 70)
    dequantize(GGMLType.Q8_0, torch.from_numpy(raw), wide[:, :64])
    assert torch.equal(wide[:, :64], specification(GGMLType.Q8_0, raw, 64))
    assert not wide[:, 64:].any()


def test_what_the_engine_multiplies_with_is_quick() -> None:
    assert QUICK_TYPES == PACKED


@pytest.mark.parametrize("kind", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16])
def test_rounded_once_to_bf16(kind: GGMLType) -> None:
    k = 2 * block_size(kind) if block_size(kind) > 1 else 64
    raw = np.random.default_rng(0).integers(0, 100, (8, row_bytes(kind, k)), np.uint8)
    found = dequantize(kind, torch.from_numpy(raw), torch.empty(8, k, dtype=torch.bfloat16))
    assert torch.equal(found, specification(kind, raw, k).bfloat16())
