"""From hidden states to what losses read: log p of given tokens, entropy, KL. Logits in chunks.

With z = softcap(W h) / T and p = softmax(z), of token t:

    log p_t = z_t - log Σ e^z          d/dz_j = [j = t] - p_j
    H = -Σ p log p                     d/dz_j = -p_j (log p_j + H)
    K = Σ p (log p - log q)            d/dz_j = p_j (log p_j - log q_j - K)

torch's autograd would keep several tensors of the size (M, V), hundreds of megabytes each; this function
keeps at most one, in the dtype of the products, and only up to KEEP_BYTES; beyond, it computes the logits of
a block of rows again. The gradient of the matrix goes straight into its `.grad`, without one of its own.

On a CPU in f32 the passes over the logits are the native module's: a row stays in the cache while its
maximum and its sums are found, and what is kept are the logits themselves, which the backward turns into
their gradient in place. In torch each of these passes goes through memory, and together they take longer than
the product.

Products in bf16 come out rounded to 8 bits, which is 0.06 at a logit of 15, far more than sampler and
trainer may differ. A softmax does not change when its row is shifted, so the row's own z_t is taken off
inside the product, where sums are f32: the tokens that carry the probability then come out near 0, where
bf16 is fine. For that the matrix gets columns of ones, and h the three bf16 parts of -z_t.

Axes: M chosen rows, N rows of a chunk, D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from etude.kernels import _native
from etude.model.operators import applied
from etude.model.projections import Linear
from etude.model.scratch import Scratch

CHUNK_VALUES = 3 << 22
"""Logits at once: 48 MiB of f32. Each chunk reads the whole matrix: of fewer rows, a product waits for it."""
NATIVE_CHUNK_VALUES = 3 << 23
"""There is one tensor of this size then, not four."""
KEEP_BYTES = 256 << 20
"""Most that one call keeps for its backward."""
SHIFT_COLUMNS = 32
"""Columns of ones beside a bf16 matrix: three are used, and rows stay aligned to 64 bytes."""


_scratch = Scratch()
"""For logits."""


@dataclass(frozen=True)
class Head:
    """The output matrix as one step uses it. parameter: the f32 master that takes the gradient; None: frozen.

    weight_VD: in the dtype of the products; in bf16 it is (V, D + SHIFT_COLUMNS), ones at the end.
    """

    parameter: Tensor | None
    weight_VD: Tensor
    width: int
    softcap: float
    temperature: float

    @classmethod
    def of(
        cls,
        linear: Linear,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        trained: bool,
        softcap: float = 0.0,
        temperature: float = 1.0,
    ) -> Head:
        """Casts the matrix, once for all micro-batches of a step."""
        n_vocab, width = linear.shape
        weight = linear.weight
        if dtype == torch.bfloat16:
            values = torch.ones(n_vocab, width + SHIFT_COLUMNS, dtype=dtype, device=device)
            linear.fill(values[:, :width])
        elif weight is not None and weight.dtype == dtype:
            values = weight.detach()
        else:
            values = torch.empty(n_vocab, width, dtype=dtype, device=device)
            linear.fill(values)
        return cls(weight if trained else None, values, width, softcap, temperature)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight_VD.dtype

    @property
    def native(self) -> bool:
        """Whether rows of logits are passed over natively."""
        weight = self.weight_VD
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and not self.softcap

    def room(self, n_rows: int) -> Tensor:
        """Memory for logits (N, V) in the dtype of the products, which the next call may take again."""
        weight = self.weight_VD
        return _scratch.matrix((n_rows, len(weight)), weight.dtype, weight.device)

    def logits_into(self, hidden_ND: Tensor, z_NV: Tensor) -> None:
        """For `native`: z without a shift, into memory that is there."""
        torch.mm(hidden_ND.to(self.dtype), self.weight_VD.T, out=z_NV)
        if self.temperature != 1.0:
            z_NV.div_(self.temperature)

    def logits(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """(z_NV, d softcap): z in f32, each row up to a constant; the softcap's slope where there is one."""
        h_ND = hidden_ND.to(self.dtype)
        if self.dtype == torch.bfloat16:
            exact_N = (h_ND.float() * self.weight_VD[targets_N, : self.width].float()).sum(-1)
            z_NV = (_with_shift(h_ND, -exact_N) @ self.weight_VD.T).float()
        else:
            exact_N = None
            z_NV = (h_ND @ self.weight_VD.T).float()
        slope_NV = None
        if self.softcap:
            if exact_N is not None:
                z_NV += exact_N[:, None]
            z_NV = torch.tanh(z_NV / self.softcap)
            slope_NV = 1 - z_NV.square()
            z_NV *= self.softcap
        return (z_NV if self.temperature == 1.0 else z_NV / self.temperature), slope_NV


def _with_shift(h_ND: Tensor, shift_N: Tensor) -> Tensor:
    """h with the parts of `shift` behind it: three bf16 hold the 24 bits of an f32."""
    out = h_ND.new_zeros(len(h_ND), h_ND.shape[1] + SHIFT_COLUMNS)
    out[:, : h_ND.shape[1]] = h_ND
    rest_N = shift_N
    for column in range(3):
        part_N = rest_N.to(h_ND.dtype)
        out[:, h_ND.shape[1] + column] = part_N
        rest_N = rest_N - part_N.float()
    return out


class Reference(NamedTuple):
    """Where KL is measured to: the reference's hidden states of the same rows, and its head."""

    hidden_MD: Tensor
    head: Head


class Statistics(NamedTuple):
    """Over M; None for what was not asked for."""

    logprobs: Tensor
    entropy: Tensor | None
    reference_kl: Tensor | None


def statistics(
    hidden_MD: Tensor,
    targets_M: Tensor,
    head: Head,
    *,
    entropy: bool = False,
    reference: Reference | None = None,
) -> Statistics:
    """log p of the targets, and what is asked for besides; differentiable in hidden_MD and the parameter."""
    request = _Request(targets_M, head, entropy, reference)
    if head.parameter is not None and torch.is_grad_enabled() and not hidden_MD.requires_grad:
        hidden_MD = hidden_MD.detach().requires_grad_()  # the matrix alone is trained
    logprobs_M, entropy_M, kl_M = applied(_Statistics, hidden_MD, request)
    return Statistics(logprobs_M, entropy_M, kl_M)


@dataclass(frozen=True)
class _Request:
    targets_M: Tensor
    head: Head
    entropy: bool
    reference: Reference | None

    def chunks(self, start: int, end: int) -> Iterator[slice]:
        values = NATIVE_CHUNK_VALUES if self.native else CHUNK_VALUES
        rows = max(1, values // len(self.head.weight_VD))
        for row in range(start, end, rows):
            yield slice(row, min(row + rows, end))

    @property
    def native(self) -> bool:
        return self.head.native and self.reference is None

    def block_rows(self) -> int:
        """Rows whose probabilities fit KEEP_BYTES."""
        return max(1, KEEP_BYTES // (len(self.head.weight_VD) * self.head.weight_VD.element_size()))

    def softmax(self, hidden_MD: Tensor, rows: slice) -> _Softmax:
        z_NV, slope_NV = self.head.logits(hidden_MD[rows], self.targets_M[rows])
        z_NV -= z_NV.amax(-1, keepdim=True)
        e_NV = z_NV.exp()
        s_N = e_NV.sum(-1)
        return _Softmax(z_NV, e_NV, s_N, slope_NV)

    def reference_logq(self, rows: slice) -> Tensor:
        assert self.reference is not None
        zq_NV, _ = self.reference.head.logits(self.reference.hidden_MD[rows], self.targets_M[rows])
        return zq_NV.log_softmax(-1)


class _Softmax(NamedTuple):
    """z - max z, e^z, and its sum: p = e / s, log p = z - log s."""

    z_NV: Tensor
    e_NV: Tensor
    s_N: Tensor
    slope_NV: Tensor | None

    def mean_of(self, values_NV: Tensor) -> Tensor:
        """Σ p · values."""
        sums_N: Tensor = torch.linalg.vecdot(self.e_NV, values_NV)
        return sums_N / self.s_N


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, request: _Request
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        n_rows, head = len(hidden_MD), request.head
        out = hidden_MD.new_empty((3, n_rows), dtype=torch.float32)
        keeps = (
            hidden_MD.requires_grad
            and n_rows <= request.block_rows()
            and not (head.softcap or request.reference)
        )
        kept_MV = head.room(n_rows) if keeps else None
        sums_M = out.new_empty(n_rows)
        peaks_M = None
        if request.native:
            peaks_M = _rows_natively(hidden_MD, request, kept_MV, sums_M, out)
        else:
            _rows_in_torch(hidden_MD, request, kept_MV, sums_M, out)
        ctx.request, ctx.kept_MV = request, kept_MV
        ctx.save_for_backward(hidden_MD, peaks_M, sums_M, out)
        return (
            out[0].clone(),
            out[1].clone() if request.entropy else None,
            out[2].clone() if request.reference is not None else None,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_M: Tensor | None) -> tuple[Tensor | None, None]:
        hidden_MD, peaks_M, sums_M, out = ctx.saved_tensors
        request: _Request = ctx.request
        kept_MV, ctx.kept_MV = ctx.kept_MV, None
        if all(grad is None for grad in grads_M):
            return None, None
        if grads_M[1] is not None or grads_M[2] is not None:
            kept_MV = None  # they need log p, which bf16 probabilities no longer give
        n_rows = len(hidden_MD)
        step = max(1, n_rows) if kept_MV is not None else request.block_rows()
        grad_MD = torch.empty_like(hidden_MD)
        natively = peaks_M is not None and grads_M[1] is None
        for start in range(0, n_rows, step):
            block = slice(start, min(start + step, n_rows))
            if natively:
                sums = (peaks_M, sums_M)
                dz_NV = _gradient_natively(request, hidden_MD, kept_MV, sums, grads_M[0], block)
            elif kept_MV is not None:
                dz_NV = _from_kept(request, kept_MV, sums_M, grads_M[0])
            else:
                dz_NV = _computed_again(request, hidden_MD, out, grads_M, block)
            _through_the_head(request.head, dz_NV, hidden_MD, grad_MD, block)
        return grad_MD, None


def _rows_in_torch(
    hidden_MD: Tensor, request: _Request, kept_MV: Tensor | None, sums_M: Tensor, out: Tensor
) -> None:
    """Statistics (3, M) into out, Σ e^z into sums_M, e^z into kept_MV."""
    for rows in request.chunks(0, len(hidden_MD)):
        soft = request.softmax(hidden_MD, rows)
        log_s_N = soft.s_N.log()
        target_N = soft.z_NV.gather(1, request.targets_M[rows, None])[:, 0]
        torch.sub(target_N, log_s_N, out=out[0, rows])
        if request.entropy:
            out[1, rows] = log_s_N - soft.mean_of(soft.z_NV)
        if request.reference is not None:
            out[2, rows] = soft.mean_of(soft.z_NV - request.reference_logq(rows)) - log_s_N
        sums_M[rows] = soft.s_N
        if kept_MV is not None:
            kept_MV[rows] = soft.e_NV


def _rows_natively(
    hidden_MD: Tensor, request: _Request, kept_MV: Tensor | None, sums_M: Tensor, out: Tensor
) -> Tensor:
    """The same, but z itself into kept_MV; and each row's maximum, peaks_M."""
    peaks_M, room_NV = torch.empty_like(sums_M), None
    for rows in request.chunks(0, len(hidden_MD)):  # kept or not: other products would round otherwise
        if kept_MV is not None:
            z_NV = kept_MV[rows]
        else:
            if room_NV is None:
                room_NV = request.head.room(rows.stop - rows.start)
            z_NV = room_NV[: rows.stop - rows.start]
        request.head.logits_into(hidden_MD[rows], z_NV)
        found_3N = torch.from_numpy(_native.softmax_rows(z_NV.numpy(), torch.get_num_threads()))
        peaks_M[rows], sums_M[rows] = found_3N[0], found_3N[1]
        log_s_N = found_3N[1].log()
        out[0, rows] = z_NV.gather(1, request.targets_M[rows, None])[:, 0] - found_3N[0] - log_s_N
        out[1, rows] = log_s_N - found_3N[2] / found_3N[1]
    return peaks_M


def _gradient_natively(
    request: _Request,
    hidden_MD: Tensor,
    kept_MV: Tensor | None,
    sums: tuple[Tensor, Tensor],
    grad_M: Tensor | None,
    block: slice,
) -> Tensor:
    """grad times d log p / d (W h) of a block of rows: written over the kept z, or over z computed again."""
    assert grad_M is not None
    grad_N = grad_M[block] / request.head.temperature
    peaks_N, sums_N = sums[0][block], sums[1][block]
    if kept_MV is None:
        z_NV = request.head.room(len(grad_N))
        request.head.logits_into(hidden_MD[block], z_NV)
    else:
        z_NV = kept_MV[block]
    factor_N = -grad_N / sums_N
    _native.softmax_gradient(z_NV.numpy(), peaks_N.numpy(), factor_N.numpy(), torch.get_num_threads())
    return z_NV.scatter_add_(1, request.targets_M[block, None], grad_N[:, None])


def _from_kept(request: _Request, kept_MV: Tensor, sums_M: Tensor, grad_M: Tensor | None) -> Tensor:
    """d loss / d (W h) of all rows, written over the kept e^z."""
    assert grad_M is not None
    grad_M = grad_M / request.head.temperature
    coefficient_M = -grad_M / sums_M
    for rows in request.chunks(0, len(kept_MV)):
        dz_NV = kept_MV[rows].float().mul_(coefficient_M[rows, None])
        dz_NV.scatter_add_(1, request.targets_M[rows, None], grad_M[rows, None])
        kept_MV[rows] = dz_NV
    return kept_MV


def _computed_again(
    request: _Request, hidden_MD: Tensor, out: Tensor, grads_M: tuple[Tensor | None, ...], block: slice
) -> Tensor:
    """d loss / d (W h) of a block of rows, from the logits computed once more."""
    head = request.head
    grad_M, entropy_grad_M, kl_grad_M = grads_M
    result = head.weight_VD.new_empty((block.stop - block.start, len(head.weight_VD)))
    for rows in request.chunks(block.start, block.stop):
        soft = request.softmax(hidden_MD, rows)
        logp_NV = soft.z_NV - soft.s_N.log()[:, None]
        weight_NV = torch.zeros_like(logp_NV)
        if grad_M is not None:
            weight_NV -= grad_M[rows, None]
        if entropy_grad_M is not None:
            weight_NV -= entropy_grad_M[rows, None] * (logp_NV + out[1, rows, None])
        if kl_grad_M is not None:
            excess_NV = logp_NV - request.reference_logq(rows) - out[2, rows, None]
            weight_NV += kl_grad_M[rows, None] * excess_NV
        dz_NV = weight_NV.mul_(soft.e_NV).div_(soft.s_N[:, None])
        if grad_M is not None:
            dz_NV.scatter_add_(1, request.targets_M[rows, None], grad_M[rows, None])
        if soft.slope_NV is not None:
            dz_NV *= soft.slope_NV
        result[rows.start - block.start : rows.stop - block.start] = dz_NV / head.temperature
    return result


def _through_the_head(head: Head, dz_NV: Tensor, hidden_MD: Tensor, grad_MD: Tensor, block: slice) -> None:
    """dh = dz W, and dW += dz^T h into the parameter's own gradient."""
    grad_MD[block] = dz_NV @ head.weight_VD[:, : head.width]
    parameter = head.parameter
    if parameter is None:
        return
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    h_ND = hidden_MD[block].to(dz_NV.dtype)
    if parameter.grad.dtype == dz_NV.dtype:
        parameter.grad.addmm_(dz_NV.T, h_ND)
    else:
        parameter.grad += dz_NV.T @ h_ND
