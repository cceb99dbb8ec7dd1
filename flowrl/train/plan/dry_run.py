"""What a forward and a backward pass would take, found by running them on tensors that have shapes and no memory.

On torch's meta device every operation makes tensors of the right size and computes nothing. A :class:`Meter` sees them come and go, as an
allocator would, and so knows the largest sum. Two things differ from a real device and are put right: the dtype rules of autocast, which
the meta device does not have, and attention, which a GPU computes without the matrix of weights.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["DeviceRules", "Meter"]

BACKWARD_OF_ATTENTION = 2.5  # fused kernels compute the weights again: five products for two (arXiv:2205.14135, Sec. 3)

# Of torch's list of autocast rules, what pictures' networks use. https://docs.pytorch.org/docs/stable/amp.html, "Op-Specific Behavior".
_LOW: frozenset[Any] = frozenset({
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, torch.conv2d, torch.conv3d, torch.matmul, torch.mm, torch.bmm, torch.addmm,
    torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm,
})  # fmt: skip
_FULL: frozenset[Any] = frozenset({
    F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.normalize, F.softplus, torch.pow, Tensor.pow, Tensor.__pow__,
    torch.rsqrt, Tensor.rsqrt, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum, torch.norm,
    Tensor.norm, torch.reciprocal, Tensor.reciprocal,
})  # fmt: skip


class Meter(TorchDispatchMode):
    """Adds up the storages that are alive, and the floating-point operations of matrix products, convolutions and attention.

    Attributes:
        live: Bytes at this moment, without what was :meth:`known` before.
        peak: The largest ``live`` since it was last :meth:`reset`.
        operations: A multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.operations = 0.0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note the tensors that it makes."""
        del types
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._note(tensor)
        if (packet := func.overloadpacket) in flop_registry:
            self.operations += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result

    def known(self, tensors: Iterable[Tensor]) -> None:
        """Leave out tensors that were there before, such as weights."""
        for tensor in tensors:
            self._sizes.setdefault(_address(tensor.untyped_storage()), 0)

    def reset(self) -> None:
        """Look for the largest sum from here on."""
        self.peak = self.live

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = _address(storage)
        if key not in self._sizes:
            self._sizes[key] = size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class DeviceRules(TorchFunctionMode):
    """Runs code as a device would under autocast: matrix products in a low precision, some sums and norms in float32, fused attention.

    Args:
        meter: Is told the operations of attention.
        dtype: Of autocast; float32 for none.
        full: Whether norms and powers become float32, which CUDA's autocast does and the CPU's does not.
    """

    def __init__(self, meter: Meter, dtype: torch.dtype = torch.float32, *, full: bool = True) -> None:
        super().__init__()
        self._meter = meter
        self._dtype = dtype
        self._full = full

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function under the rules."""
        del types
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self._dtype != torch.float32 and func in _LOW:
            return self._in(self._dtype, func, args, kwargs)
        if self._dtype != torch.float32 and self._full and func in _FULL:
            return self._in(torch.float32, func, args, kwargs)
        return func(*args, **kwargs)

    def checkpoint(self, block: Callable[..., Any], *args: Any) -> Any:
        """Run a block and forget its activations; it runs again in the backward pass, where torch has left this mode, under the rules."""
        return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self))

    def _in(self, dtype: torch.dtype, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return func(*(_cast(value, dtype) for value in args), **{name: _cast(value, dtype) for name, value in kwargs.items()})

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        del attn_mask
        low = self._dtype != torch.float32
        parts = [_cast(tensor, self._dtype) if low else tensor for tensor in (query, key, value)]
        return _FusedAttention.apply(*parts, self._meter)  # type: ignore[no-untyped-call]


class _FusedAttention(torch.autograd.Function):
    """Sizes of attention that keeps its inputs, its output and one number per query for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, meter: Meter) -> Tensor:
        out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        normaliser = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.operations = 2 * query.numel() // query.shape[-1] * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        ctx.meter = meter
        meter.operations += ctx.operations
        ctx.save_for_backward(query, key, value, out, normaliser)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        del gradients
        ctx.meter.operations += BACKWARD_OF_ATTENTION * ctx.operations
        return *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None


def _address(storage: torch.UntypedStorage) -> int:
    """Of the storage itself: on the meta device there is no data to point to."""
    return storage._cdata  # noqa: SLF001 - the only name that torch gives it


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype:
        return value.to(dtype)
    return value


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _tensors(item)
