"""Columns of a Hugging Face data set as inputs and targets, in memory or streamed from files that need not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noisescape.distributed import Shard
from noisescape.errors import InvalidTypeError, InvalidValueError, unknown
from noisescape.scalars import check_whole

Inputs = Tensor | dict[str, Tensor]


class Columns:
    """The rows of a ``datasets.Dataset`` or ``IterableDataset``, batch by batch, the same on every pass.

    Data for :class:`~noisescape.EmpiricalRisk`. The files are read anew on each pass, and each batch is held to its
    checksum on the first: what streams is never held, and nothing can change unnoticed.

    Args:
        dataset: with columns of numbers, or of images, which become (C, H, W) tensors of bytes.
        inputs: a column, or several, which the model then gets by their names: ``model(input_ids=…, …)``.
        targets: a column.
        batch_size: rows read together.
        transform: of a batch of inputs, on each pass the same: scaling, say.

    Raises:
        TypeError: no data set of Hugging Face's.
        ValueError: no such column; rows of unlike shapes (on reading).

    >>> import datasets
    >>> rows = datasets.Dataset.from_dict({"x": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], "y": [0, 1, 0]})
    >>> inputs, targets = next(iter(Columns(rows, inputs="x", targets="y", batch_size=2)))
    >>> inputs.shape, targets
    (torch.Size([2, 2]), tensor([0, 1]))
    """

    def __init__(
        self,
        dataset: Any,
        inputs: str | Sequence[str],
        targets: str,
        *,
        batch_size: int = 256,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if not (hasattr(dataset, "iter") and hasattr(dataset, "with_format") and hasattr(dataset, "column_names")):
            raise InvalidTypeError(
                f"a {type(dataset).__name__} has no columns to read: pass a datasets.Dataset or IterableDataset, "
                'one split of it (load_dataset(…, split="train"))'
            )
        check_whole("batch_size", batch_size)
        names = [*([inputs] if isinstance(inputs, str) else inputs), targets]
        known = dataset.column_names
        if known is not None:  # a stream whose first row nobody has seen does not know them
            for name in names:
                if name not in known:
                    raise unknown("column", name, known)
            dataset = dataset.select_columns([*dict.fromkeys(names)])
        self.dataset = dataset.with_format("torch")
        self.inputs, self.targets = inputs, targets
        self.batch_size = batch_size
        self.transform = transform

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        for rows in self.dataset.iter(self.batch_size):
            found: Any
            if isinstance(self.inputs, str):
                found = _column(rows, self.inputs)
            else:
                found = {name: _column(rows, name) for name in self.inputs}
            yield found if self.transform is None else self.transform(found), _column(rows, self.targets)

    def part_of(self, shard: Shard) -> Columns:
        """A rank's rows; see :meth:`~noisescape.distributed.Shard.part`.

        Of a stream, whole files where there are as many for every rank, else every so many rows: samples are then
        numbered otherwise than in one process.
        """
        from datasets import Dataset
        from datasets.distributed import split_dataset_by_node

        if isinstance(self.dataset, Dataset):
            rows = self.dataset.select(shard.checked(len(self.dataset)))
        else:
            rows = split_dataset_by_node(self.dataset, rank=shard.rank, world_size=shard.ranks)
        return Columns(rows, self.inputs, self.targets, batch_size=self.batch_size, transform=self.transform)


def _column(rows: dict[str, Any], name: str) -> Tensor:
    if name not in rows:
        raise unknown("column", name, list(rows))
    found = rows[name]
    if isinstance(found, Tensor):
        return found
    shapes = sorted({str(tuple(each.shape)) for each in found if isinstance(each, Tensor)})
    if len(shapes) == 1 and len(found) == sum(isinstance(each, Tensor) for each in found):
        return torch.stack(found)
    raise InvalidValueError(
        f"the rows of column '{name}' have no one shape ({', '.join(shapes[:3]) or type(found[0]).__name__}): map "
        "the data set to one first, dataset.map(…), by padding, resizing or tokenizing"
    )
