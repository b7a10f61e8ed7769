"""Operations whose usual kernels lack a derivative that is needed, evaluated by others that have it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, embedding_bag, multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from noisescape.errors import BatchCouplingError, InvalidValueError

_ATTENTION = (scaled_dot_product_attention, multi_head_attention_forward)
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


class DifferentiableKernels(TorchFunctionMode):
    """While it is entered, operations have the same derivative in forward and in reverse mode, and a second one.

    * Scaled dot-product attention runs by its mathematical definition, also where the model asks for a fused
      kernel: those have neither second nor forward-mode derivatives.
    * Recurrent layers on a GPU run step by step: cuDNN's have no second derivative, and want the weights moved into
      one piece of memory.
    * An embedding takes no derivative through its ``padding_idx``; PyTorch drops that in reverse mode only.
    * An embedding bag is a sum or mean of embeddings, which has a second derivative.
    * Weight normalisation is evaluated by its formula: the fused kernel's second derivative is wrong on the CPU
      (torch 2.13; its gradgradcheck fails).

    Attributes:
        met: names of the operations above that were called while it was entered.

    Raises:
        ValueError: an embedding that renormalises its weights in place, or has sparse gradients.
        BatchCouplingError: one whose gradients are scaled by the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ATTENTION:
            self.met.add("attention")
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        if func is torch._cudnn_rnn_flatten_weight:
            return None
        if func in _RECURRENT and torch.backends.cudnn.enabled and args[0].is_cuda:
            self.met.add("recurrence")
            with _without_cudnn():
                return func(*args, **kwargs)
        if func is embedding:
            return self._embedding(*args, **kwargs)
        if func is embedding_bag:
            return self._embedding_bag(*args, **kwargs)
        if func is torch._weight_norm:
            self.met.add("weight norm")
            return _weight_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        _check_embedding(max_norm, scale_grad_by_freq, sparse)
        found = embedding(input, weight)
        if padding_idx is None:
            return found
        self.met.add("padding")
        padded = input == padding_idx % weight.shape[0]
        return torch.where(padded.unsqueeze(-1), found.detach(), found)

    def _embedding_bag(
        self,
        input: Tensor,
        weight: Tensor,
        offsets: Tensor | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Tensor:
        _check_embedding(max_norm, scale_grad_by_freq, sparse)
        if input.ndim != 2 or padding_idx is not None or mode not in ("sum", "mean"):
            return embedding_bag(
                input,
                weight,
                offsets,
                mode=mode,
                per_sample_weights=per_sample_weights,
                include_last_offset=include_last_offset,
                padding_idx=padding_idx,
            )
        self.met.add("embedding bag")
        found = embedding(input, weight)
        if per_sample_weights is not None:
            found = found * per_sample_weights.unsqueeze(-1)
        return found.sum(1) if mode == "sum" else found.mean(1)


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = True


def _check_embedding(max_norm: float | None, scale_grad_by_freq: bool, sparse: bool) -> None:
    if max_norm is not None:
        raise InvalidValueError(
            "an Embedding with max_norm rescales its weights in place during the forward pass, so the loss is "
            "no function of θ; build it with max_norm=None and rescale the weights before measuring"
        )
    if scale_grad_by_freq:
        raise BatchCouplingError(
            "an Embedding with scale_grad_by_freq=True scales a gradient by how often its index occurs in the "
            "batch: there is no per-sample gradient; build it with scale_grad_by_freq=False"
        )
    if sparse:
        raise InvalidValueError(
            "an Embedding with sparse=True has sparse gradients, which one flat θ does not; set sparse=False "
            "on it (module.sparse = False): the gradient is the same"
        )


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g·v/‖v‖, norms over all dimensions but ``dim``; over all where that is −1."""
    kept = dim % v.ndim if dim != -1 else None
    over = [axis for axis in range(v.ndim) if axis != kept]
    return v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=True))


@contextlib.contextmanager
def unfused_attention(kernels: DifferentiableKernels | None) -> Iterator[None]:
    """Attention modules without their fused inference path, and ``kernels`` if there are any.

    The setting of the attention kernel is the process's, not the thread's: it also reaches forward passes that
    checkpointing repeats on a device's own thread.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if kernels is None:
            yield
        else:
            with sdpa_kernel(SDPBackend.MATH), kernels:
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
