"""The gradient noise of a Lightning training: one callback, and the figures are in its own loggers."""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisescape as ns


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(directory: Path) -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))
    trainer = pl.Trainer(
        callbacks=[ns.training.LightningNoiseMonitor(every=100, measure_every=2)],
        accumulate_grad_batches=2,
        logger=CSVLogger(directory),
        max_epochs=8,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Digits(), DataLoader(data, batch_size=16, shuffle=True))

    log = ns.training.read_log(Path(trainer.logger.log_dir))  # or: noisescape watch lightning_logs/version_0
    for step, scale, low, high in zip(
        log.steps, *(log.columns[f"noise/scale{end}"] for end in ("", "_low", "_high")), strict=True
    ):
        print(f"step {step:4.0f}  noise scale {scale:6.1f} [{low:.1f}, {high:.1f}] samples")


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated")
    with tempfile.TemporaryDirectory() as directory:
        main(Path(directory))
