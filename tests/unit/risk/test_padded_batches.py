"""Batches padded to a width of their own give what one width gives."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader

from cases import F64, normal
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradients import row_chunks

LENGTHS = [3, 6, 2, 5, 5, 4, 1, 2, 6, 3]
GENERATOR = torch.Generator().manual_seed(1)
WORDS = [torch.randint(1, 9, (k,), generator=GENERATOR) for k in LENGTHS]
TAGS = [torch.randint(0, 5, (k,), generator=GENERATOR) for k in LENGTHS]
KINDS = torch.tensor([k % 3 for k in LENGTHS])


class Sentences(nn.Module):
    """A class a sentence, or a tag a word."""

    def __init__(self, tags: bool) -> None:
        super().__init__()
        self.embedding, self.head, self.tags = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 5), tags
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=10 + number))
        self.to(F64)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        states = torch.tanh(self.embedding(words))
        if self.tags:
            return self.head(states).transpose(1, 2)
        return self.head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def padded(rows: Iterable[int], tags: bool) -> tuple[dict[str, Tensor], Tensor]:
    rows = list(rows)
    width = max(LENGTHS[n] for n in rows)
    words = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=F64)
    targets = torch.full((len(rows), width), -100)
    for place, n in enumerate(rows):
        words[place, : LENGTHS[n]], mask[place, : LENGTHS[n]] = WORDS[n], 1
        targets[place, : LENGTHS[n]] = TAGS[n]
    return {"words": words, "mask": mask}, targets if tags else KINDS[rows]


@pytest.mark.parametrize("memory_budget", [2**30, 20_000, 4000])
@pytest.mark.parametrize("tags", [False, True])
def test_batches_padded_to_their_own_width_give_what_one_width_gives(tags: bool, memory_budget: int) -> None:
    model = Sentences(tags)
    count = len(LENGTHS)
    inputs, targets = padded(range(count), tags)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(range(count), batch_size=3, collate_fn=functools.partial(padded, tags=tags))  # type: ignore[arg-type,var-annotated]
    risk = EmpiricalRisk(model, criterion, loader, memory_budget=memory_budget)
    theta = risk.parameters()

    def plain_gradient(value: Tensor, **options: bool) -> Tensor:
        parts = torch.autograd.grad(value, [*model.parameters()], **options)
        return torch.cat([part.reshape(-1) for part in parts])

    # ℓ_n = N Σ_i ℓ_i / W over the tokens of n: their mean is the criterion on all tokens
    each = F.cross_entropy(model(**inputs), targets, reduction="none")
    values = each.sum(1) * count / (targets != -100).sum() if tags else each
    rows = torch.stack([plain_gradient(value, retain_graph=True) for value in values])
    assert_close(values.mean(), criterion(model(**inputs), targets))
    indices = torch.tensor([0, 9, 3, 0, 6])
    assert_close(risk.losses(theta), values.detach())
    assert_close(risk.gradient(theta), rows.mean(0))
    assert_close(torch.cat(list(row_chunks(risk, theta))), rows)
    assert_close(risk.per_sample_gradients(theta, indices), rows[indices])
    assert_close(risk.minibatch_gradient(theta, indices), rows[indices].mean(0))
    both = torch.stack([theta, theta])
    own = torch.stack([indices, indices.flip(0) // 2])
    assert_close(risk.minibatch_gradient(both, own), torch.stack([rows[some].mean(0) for some in own]))
    centred = rows - rows.mean(0)
    direction = normal(len(theta), seed=20)
    covariance = risk.noise_covariance(theta, 4)
    assert_close(covariance @ direction, centred.T @ (centred @ direction) / count / 4)
    gradient = plain_gradient(values.mean(), create_graph=True)
    assert_close(risk.hessian(theta) @ direction, plain_gradient(gradient @ direction))
