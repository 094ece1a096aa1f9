"""Tensors of trainers: types, strides, lifetimes and refusals of the DLPack reader, without torch."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest

from etude.engine.dlpack import _DLTensor, _get_pointer, values_of
from etude.records import EtudeError


class Tensor:
    """Exports an array like a trainer's tensor does; `code` and `device` overwrite what numpy says."""

    def __init__(self, array: np.ndarray, code: int | None = None, device: int | None = None) -> None:
        self.array, self.code, self.device = array, code, device

    def __dlpack__(self):
        capsule = self.array.__dlpack__()
        header = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
        if self.code is not None:
            header.code = self.code
        if self.device is not None:
            header.device_type = self.device
        return capsule


def bf16(values: np.ndarray) -> Tensor:
    """A bfloat16 tensor: the upper halves of f32 values."""
    return Tensor((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), code=4)


@pytest.mark.parametrize(("dtype", "tag"), [(np.float32, "F32"), (np.float16, "F16")])
def test_floats(dtype, tag):
    array = np.arange(12, dtype=dtype).reshape(3, 4)
    for tensor in (array, Tensor(array)):
        values, found = values_of("w", tensor)
        assert found == tag and values.dtype == dtype
        assert np.array_equal(values, array) and np.shares_memory(values, array)


def test_bfloat16_travels_as_uint16():
    values, tag = values_of("w", bf16(np.array([[1.0, -2.0], [0.5, 3.0]])))
    assert tag == "BF16" and values.dtype == np.uint16
    assert ((values.astype(np.uint32) << 16).view(np.float32) == [[1.0, -2.0], [0.5, 3.0]]).all()


def test_views_with_strides():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (array.T, array[:, 1::2], array[1:3, 2:5], array[:1, :1], np.array(7, np.float32)):
        values, _ = values_of("w", Tensor(np.asarray(view)))
        assert np.array_equal(values, view) and values.shape == view.shape


def test_broadcast_and_empty():
    wide = np.broadcast_to(np.arange(3, dtype=np.float32), (4, 3)).copy()
    values, _ = values_of("w", Tensor(wide))
    assert np.array_equal(values, wide)
    assert values_of("w", Tensor(np.zeros((0, 3), np.float32)))[0].shape == (0, 3)


def test_the_array_keeps_the_tensor_alive():
    freed = []

    class Noticed(np.ndarray):
        def __del__(self):
            freed.append(True)

    tensor = Tensor(np.arange(1000, dtype=np.float32).view(Noticed))
    values, _ = values_of("w", tensor)
    del tensor
    gc.collect()
    assert not freed and values.sum() == 499500
    del values
    gc.collect()
    assert freed


def test_read_only_arrays():
    array = np.arange(3, dtype=np.float32)
    array.flags.writeable = False
    assert values_of("w", array)[0] is array


class WithGradient:
    def __dlpack__(self):
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.arange(3), "tensor 'w' has type int64; float32, float16 and bfloat16 are read"),
        (Tensor(np.arange(3)), r"tensor 'w' has DLPack type \(code 0, 64 bits\)"),
        (Tensor(np.zeros(3)), "code 2, 64 bits"),
        (
            Tensor(np.zeros(3, np.float32), device=2),
            "tensor 'w' is on a device .DLPack type 2.; pass tensor.cpu",
        ),
        (Tensor(np.zeros(3, np.float32)[::-1]), "negative strides; pass tensor.contiguous"),
        ([1.0, 2.0], "'w' is a list, not a tensor"),
        (WithGradient(), "require gradient.*pass tensor.detach"),
    ],
)
def test_refusals(tensor, message):
    with pytest.raises(EtudeError, match=message):
        values_of("w", tensor)


def test_header_has_the_size_of_the_c_structure():
    assert ctypes.sizeof(_DLTensor) == 48
