"""Nested tuples, lists and dicts of tensors, as models take them; what is no tensor in them stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from noisescape.errors import InvalidTypeError, InvalidValueError

Tree = Any
"""A tensor, or a tuple, list or dict of such; None, flags and names among them are passed on with each batch."""

CONSTANTS = (type(None), bool, str)


def map_tensors(change: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """``change`` applied to each tensor, with those at the same place in the other trees."""

    def at(leaf: Any, *rest: Any) -> Any:
        return change(leaf, *rest) if isinstance(leaf, Tensor) else leaf

    return tree_map(at, tree, *others)


def tensors_of(tree: Tree) -> list[Tensor]:
    """All tensors in it, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def sample_axes(tree: Tree) -> Tree:
    """0 at each tensor, None elsewhere: the ``in_dims`` that map over samples."""
    return tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, tree)


def _numbers_only(data: Any) -> bool:
    """Whether nested sequences hold nothing but numbers, so that they are one array written out."""
    if isinstance(data, (tuple, list)):
        return len(data) > 0 and all(map(_numbers_only, data))
    return isinstance(data, (bool, int, float, complex, np.number, np.bool_))


def plain(data: Any, *, arrays: bool) -> Tree:
    """Any mapping as a dict, tensors detached from their history; nested sequences of numbers as one tensor.

    NumPy arrays as tensors if ``arrays``.

    Raises:
        TypeError: something that is no tensor, container or constant.
        ValueError: a tensor whose samples do not lie along its first dimension.
    """
    if isinstance(data, PackedSequence):
        raise InvalidValueError(
            "a PackedSequence packs the samples of a batch into one tensor, so they cannot be taken apart; pass "
            "the padded tensor and the lengths as inputs, and pack them inside the model's forward"
        )
    if isinstance(data, Tensor):
        if data.layout is not torch.strided or data.is_nested:
            if data.is_nested:  # which may have no shape to tell
                raise InvalidValueError(
                    "a data tensor is nested; samples are cut from dense tensors: pad it, .to_padded_tensor(0.0), "
                    "and pass the lengths or a mask along"
                )
            raise InvalidValueError(
                f"a data tensor of shape {tuple(data.shape)} is sparse ({data.layout}); samples are cut from dense "
                "tensors: use .to_dense(), or keep a sparse matrix that all samples share inside the model as a "
                "buffer"
            )
        # features computed in inference mode take part in no derivative but as a copy
        return data.clone() if data.is_inference() else data.detach()
    if isinstance(data, Mapping):
        return {key: plain(value, arrays=arrays) for key, value in data.items()}
    if isinstance(data, (tuple, list)) and data and all(isinstance(value, str) for value in data):
        raise InvalidTypeError(
            f"the data holds strings, {data[0][:40]!r} …, of which no samples can be cut; turn them into tensors, "
            "by a tokeniser, say, in the data set or in the loader's collate_fn"
        )
    if isinstance(data, (tuple, list)) and not _numbers_only(data):
        found = [plain(value, arrays=arrays) for value in data]
        return tuple(found) if isinstance(data, tuple) else found
    if isinstance(data, CONSTANTS):
        return data
    if isinstance(data, np.ndarray) and not arrays:
        raise InvalidTypeError(
            "inputs and targets are numpy arrays; pass tensors: (torch.from_numpy(x), torch.from_numpy(y)), of the "
            "model's dtype"
        )
    try:
        if isinstance(data, np.ndarray) and not data.flags.writeable:  # PyTorch would warn of it
            data = data.copy()
        return torch.as_tensor(data)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"data must be tensors, or tuples and dicts of tensors, not {type(data).__name__}; convert it in the "
            "data set or in the loader's collate_fn"
        ) from error
