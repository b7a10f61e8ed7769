"""Trainings of transformers and Lightning on two ranks; each writes what its monitor reported to a JSON file.

``torchrun --nproc-per-node 2 trainer_ranks.py OUT``
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import noisescape as ns
from trainer_cases import CASES, Case, Module, adamw, language_model, lightning_trainer, text, transformers_trainer

TWO, ONE = CASES["conv net, two micro-steps"], CASES["conv net, one"]
UNEQUAL = Case(language_model, text, adamw, size=2, steps=4)
"""Half the rows have labels in part only."""


def unequal(count):
    rows = text(count)
    for number, row in enumerate(rows):
        row["labels"] = row["input_ids"].clone()
        row["labels"][3 + 2 * (number % 7) :] = -100
    return rows


def monitor(kind, every):
    return getattr(ns.training, f"{kind}NoiseMonitor")(every=every, measure_every=1)


def transformers(case, out, steps, data=None, **options):
    callback = monitor("Transformers", steps)
    known = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}
    trainer = transformers_trainer(case, out / "out", [callback], data=data, **known, **options)
    trainer.train()
    return callback.report


def lightning(case, out, steps):
    callback = monitor("Lightning", steps)
    trainer = lightning_trainer(
        case, callbacks=[callback], strategy="ddp", devices=2, use_distributed_sampler=False
    )
    mine = DataLoader(case.batches[dist.get_rank() :: 2], batch_size=None)
    trainer.fit(Module(case.model(), case.optimizer), mine)
    return callback.report


def main(out: Path) -> None:
    torch.set_num_threads(1)
    runs = {
        "transformers-two": functools.partial(transformers, TWO, out, TWO.steps // 2),
        "transformers-one": functools.partial(transformers, ONE, out, ONE.steps // 2),
        "transformers-labels": functools.partial(transformers, UNEQUAL, out, 2, unequal(16)),
        "transformers-own-labels": functools.partial(
            transformers, UNEQUAL, out, 2, unequal(16), average_tokens_across_devices=False
        ),
        "lightning-two": functools.partial(lightning, TWO, out, TWO.steps // 2),
        "lightning-one": functools.partial(lightning, ONE, out, ONE.steps // 2),
    }
    found = {}
    for name, run in runs.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = run()
        ours = [str(warning.message) for warning in caught if "gradient noise" in str(warning.message)]
        found[name] = {"report": report, "warnings": ours}
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
