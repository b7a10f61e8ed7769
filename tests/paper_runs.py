"""The paper's experiments on made-up images, at a size that runs within seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.images import COLUMNS, IMAGE_SETS, ImageSet
from noisescape.experiments.one_hidden_layer import OneHiddenLayerConfig
from noisescape.experiments.registry import EXPERIMENTS
from slowness import quick
from tiny_images import png

HIDDEN = OneHiddenLayerConfig(seeds=1, widths=(4, 16), points=50, seed=4)
ON_IMAGES = ("fashion-mnist", "svhn", "cifar10")
SET_OF = {"fashion-mnist": "fashion_mnist", "svhn": "svhn", "cifar10": "cifar10"}
on_images = pytest.mark.parametrize("experiment", quick(["svhn"], ON_IMAGES))
FIGURES = {
    "one-hidden-layer": {"indicator", "loss"},
    "fashion-mnist": {"learning_curves", "sharpness", "indicator", "spectra"},
    "svhn": {"learning_curves", "sharpness_accuracy"},
    "cifar10": {"learning_curves", "sharpness_accuracy"},
}


def data_directory(root: Path, rows: int = 60) -> Path:
    """The three data sets as small parts: ten patterns in noise. CIFAR-10 alone has a part of a test split."""
    for seed, about in enumerate(IMAGE_SETS.values()):
        patterns = np.random.default_rng(seed).integers(0, 256, (10, about.size, about.size, about.channels))
        splits = ("train", "test") if about.name == "cifar10" else ("train",)
        for split in splits:
            write_part(root, about, split, patterns, rows)
    return root


def write_part(root: Path, about: ImageSet, split: str, patterns: np.ndarray[Any, Any], rows: int) -> None:
    random = np.random.default_rng(len(split))
    labels = random.permutation(rows) % 10
    noise = random.normal(0, 40, (rows, *patterns.shape[1:]))
    images = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
    cells = [{"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(images)]
    path = root / about.name / f"{split}_prefix.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(cells, COLUMNS["image"]), "label": labels}), path)


def tiny(experiment: str, data_dir: str | Path | None, **changes: Any) -> Any:
    """A configuration that runs within seconds."""
    where = None if data_dir is None else str(data_dir)
    if experiment == "fashion-mnist":
        small: dict[str, Any] = {
            "seeds": 1,
            "clean": 20,
            "corrupted": 5,
            "test": 12,
            "init_std": 0.1,  # off the plateau at the start within a few steps
            "gd_steps": 30,
            "landmarks": (0.5,),
            "steps": 6,
            "batch_size": 5,
            "k": 3,
            "refresh": 2,
            "curvature_refresh": 4,
            "sharpness_draws": 4,
            "rtol": 0.5,
            "rtol_along": 0.5,
        }
        return FASHION_MNIST.configure("quick", data_dir=where, **(small | changes))
    small = {
        "seeds": 2,
        "train": 24,
        "test": 12,
        "width": 1 / 64,
        "steps": 7,
        "batch_size": 5,
        "refresh": 2,
        "batches": 4,
        "sharpness_draws": 4,
    }
    return EXPERIMENTS[experiment].configure("quick", data_dir=where, **(small | changes))
