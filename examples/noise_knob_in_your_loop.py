"""The noise of a small batch in a training loop that keeps its large one: one line in place of `losses.mean()`.

The same network is trained on batches of 128, on batches of 128 as if they were of 8, and on batches of 8. A fifth
of the training labels is random: a network with little noise learns them by heart.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import noisescape as ns


def main() -> None:
    images, labels = (torch.as_tensor(found) for found in load_digits(return_X_y=True))
    images = images.float() / 8 - 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:360], order[360:]
    wrong = labels.clone()
    wrong[train[:72]] = torch.randint(10, (72,), generator=torch.Generator().manual_seed(1))

    for drawn, batch_size in ((128, 128), (128, 8), (8, 8)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=3000)
        for _ in range(3000):
            batch = train[torch.randint(len(train), (drawn,))]
            losses = nn.functional.cross_entropy(model(images[batch]), wrong[batch], reduction="none")
            optimizer.zero_grad()
            ns.as_if_batch(losses, batch_size).backward()  # was losses.mean().backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            fitted = nn.functional.cross_entropy(model(images[train]), wrong[train])
            right = (model(images[test]).argmax(1) == labels[test]).float().mean()
        print(f"batch {drawn:3d}, noise of {batch_size:3d}: training loss {fitted:.3f}, test accuracy {right:.1%}")

    # what the noise is: over batches and weights, the covariance of the gradient is C/8 whatever the batch's size
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, (images[train], wrong[train]))
    theta, generator = risk.parameters(), torch.Generator().manual_seed(2)
    mean, traces = risk.gradient(theta), []
    for _ in range(1000):
        batch = train[torch.randint(len(train), (128,), generator=generator)]
        losses = nn.functional.cross_entropy(model(images[batch]), wrong[batch], reduction="none")
        knob = torch.autograd.grad(ns.as_if_batch(losses, 8, generator=generator), [*model.parameters()])
        noise = torch.cat([part.flatten() for part in knob]) - mean
        traces.append(noise.square().sum())
    measured = torch.stack(traces)
    print(
        f"Tr Σ of batches of 128 as if of 8: {measured.mean():.3f} ± {measured.std() / 1000**0.5:.3f}; "
        f"of batches of 8, exact: {risk.noise_covariance(theta, 8).trace():.3f}"
    )


if __name__ == "__main__":
    main()
