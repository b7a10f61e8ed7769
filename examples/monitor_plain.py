"""The gradient noise of a training loop of your own, in three lines: the noise scale with an interval."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import noisescape as ns


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    monitor = ns.Monitor(model, optimizer, every=100, measure_every=2)  # one
    for _ in range(9):
        for batch in torch.randperm(len(images)).split(32)[:-1]:
            for part in batch.chunk(2):  # two micro-steps; with one, the monitor would split it
                loss = nn.functional.cross_entropy(model(images[part]), labels[part])
                (loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            if report := monitor.step():  # two
                show(report)  # three: wandb.log(report), or any logger's


def show(report: dict[str, float]) -> None:
    """A few of the figures; all of them have an error."""
    low, scale, high = (report[f"noise/scale{end}"] for end in ("_low", "", "_high"))
    trace, trace_error = report["noise/trace_covariance"], report["noise/trace_covariance_stderr"]
    adam = report["noise/preconditioned/scale"]
    print(
        f"step {report['noise/step']:4.0f}  Tr C {trace:6.2f} ± {trace_error:.2f}  noise scale {scale:6.1f} "
        f"[{low:.1f}, {high:.1f}]  in Adam's metric {adam:6.1f}"
    )


if __name__ == "__main__":
    main()
