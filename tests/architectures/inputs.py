"""Data for each kind of model: N = 6 samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cases import classes, normal

N = 6


def vectors(width: int = 4, of: int = 3) -> tuple[Tensor, Tensor]:
    return normal(N, width, seed=1), classes(N, of=of, seed=2)


def pictures(channels: int = 1, side: int = 6) -> tuple[Tensor, Tensor]:
    return normal(N, channels, side, side, seed=4), classes(N, of=3, seed=5)


def signals() -> tuple[Tensor, Tensor]:
    return normal(N, 2, 6, seed=4), classes(N, of=3, seed=5)


def tokens(of: int = 11, length: int = 5) -> tuple[Tensor, Tensor]:
    """What comes next, at every place."""
    text = classes(N, length + 1, of=of, seed=6)
    return text[:, :-1], text[:, 1:]


_LENGTHS = (6, 3, 5, 2, 4, 6)


def padded(length: int = 6, of: int = 9, lengths: tuple[int, ...] = _LENGTHS) -> Tensor:
    """Token 0 beyond each sample's length; the first sample is full."""
    text = classes(len(lengths), length, of=of - 1, seed=7) + 1
    return text * (torch.arange(length) < torch.tensor(lengths)[:, None])


def bert_batch(length: int = 6, lengths: tuple[int, ...] = _LENGTHS) -> tuple[dict[str, Any], Tensor]:
    text = padded(length, 13, lengths)
    return {"input_ids": text, "attention_mask": (text != 0).long()}, classes(len(lengths), of=3, seed=2)


def bert_without_types() -> tuple[dict[str, Any], Tensor]:
    inputs, targets = bert_batch()
    return {**inputs, "token_type_ids": None}, targets


def bert_padded_by_batch() -> list[tuple[dict[str, Any], Tensor]]:
    return [bert_batch(4, (4, 2)), bert_batch(6, (5, 6, 3)), bert_batch(3, (3,))]


def t5_data() -> tuple[dict[str, Any], Tensor]:
    source, (given, wanted) = padded(5, 11, (5, 3, 4, 5, 2, 4)), tokens(length=4)
    mask = (source != 0).long()
    return {"input_ids": source, "attention_mask": mask, "decoder_input_ids": given}, wanted


def attention_data() -> tuple[dict[str, Any], Tensor]:
    missing = torch.arange(6) >= torch.tensor(_LENGTHS)[:, None]
    return {"x": normal(N, 6, 4, seed=6), "key_padding_mask": missing, "scale": None}, classes(N, of=3, seed=5)


def heat_data() -> tuple[Tensor, Tensor]:
    points = normal(N, 2, seed=1)
    return points, torch.sin(math.pi * points[:, :1])
