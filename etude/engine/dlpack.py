"""A trainer's tensor as a numpy array, without a copy and without torch.

numpy has no bfloat16, so `np.from_dlpack` refuses what trainers hold most. The DLPack structure is read
directly instead (dlpack.h: DLManagedTensor begins with a DLTensor); bfloat16 travels as uint16, as in
checkpoint.py.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from etude.records import EtudeError

CPU = 1  # kDLCPU
_TAGS = {(2, 32): "F32", (2, 16): "F16", (4, 16): "BF16"}
"""(type code, bits) -> tag; codes: 2 float, 4 bfloat."""
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class DLPackTensor(Protocol):
    """torch.Tensor, numpy.ndarray, jax.Array …"""

    def __dlpack__(self) -> Any: ...


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def values_of(name: str, tensor: Any) -> tuple[NDArray[Any], str]:
    """(values, "F32", "F16" or "BF16" as uint16) of a tensor called `name` in error texts.

    The array shares the tensor's memory and keeps it alive. EtudeError for other types, for a tensor that is
    not in main memory, and for one that still carries gradients.
    """
    if isinstance(tensor, np.ndarray):  # DLPack cannot export read-only arrays
        tag = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(tensor.dtype.name)
        if tag is None:
            raise EtudeError(
                f"tensor {name!r} has type {tensor.dtype}; float32, float16 and bfloat16 are read"
            )
        return (tensor.view(np.uint16) if tag == "BF16" else tensor), tag
    if not hasattr(tensor, "__dlpack__"):
        raise EtudeError(f"{name!r} is a {type(tensor).__name__}, not a tensor (nothing with __dlpack__)")
    try:
        capsule = tensor.__dlpack__()
    except (BufferError, RuntimeError) as error:
        raise EtudeError(
            f"tensor {name!r} cannot be exported ({error}); pass tensor.detach().cpu()"
        ) from error
    return _read_capsule(name, capsule)


def _read_capsule(name: str, capsule: Any) -> tuple[NDArray[Any], str]:
    """The array that an unused DLPack capsule describes. The capsule stays unused, and frees itself."""
    header = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    if header.device_type != CPU:
        raise EtudeError(
            f"tensor {name!r} is on a device (DLPack type {header.device_type}); pass tensor.cpu()"
        )
    tag = _TAGS.get((header.code, header.bits)) if header.lanes == 1 else None
    if tag is None:
        raise EtudeError(
            f"tensor {name!r} has DLPack type (code {header.code}, {header.bits} bits); "
            "float32, float16 and bfloat16 are read"
        )
    shape = tuple(header.shape[axis] for axis in range(header.ndim))
    if 0 in shape:
        return np.empty(shape, _NUMPY[tag]), tag
    item = header.bits // 8
    if header.strides:
        strides = tuple(header.strides[axis] * item for axis in range(header.ndim))
        if min(strides, default=0) < 0:
            raise EtudeError(f"tensor {name!r} has negative strides; pass tensor.contiguous()")
    else:
        strides = tuple(int(np.prod(shape[axis + 1 :])) * item for axis in range(header.ndim))
    reach = item + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * reach).from_address(header.data + header.byte_offset)
    memory.capsule = capsule  # the array holds the buffer, and the buffer the tensor
    return np.ndarray(shape, _NUMPY[tag], buffer=memory, strides=strides), tag
