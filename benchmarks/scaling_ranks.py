"""One rank of the scaling benchmark: ``torchrun -m benchmarks.scaling_ranks PROBLEM SHARE OUT``."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import noisescape as ns
from benchmarks.problems import Problem, random_lenet, random_vgg
from noisescape.distributed import Shard

PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "lenet": lambda times: random_lenet(1200 * times),
    "vgg": lambda times: random_vgg(1 / 4, 128 * times),
}
REPEATS = 3


def main(name: str, share: int, out: Path) -> None:
    """Time every product, count what it exchanges, and time an all-reduce by itself."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    shard = Shard.of_process_group()
    torch.manual_seed(0)
    problem = PROBLEMS[name](shard.ranks // share)
    loss = nn.functional.cross_entropy
    data = (problem.inputs, problem.targets)
    risk = ns.EmpiricalRisk(problem.model, loss, shard.part(data), shard=shard)
    theta = risk.parameters()
    vectors = torch.randn(len(theta), 8, generator=torch.Generator().manual_seed(1))
    hessian, covariance = risk.hessian(theta), risk.noise_covariance(theta, 20)
    products: dict[str, Callable[[], Tensor]] = {
        "gradient": lambda: risk.gradient(theta),
        "Hv": lambda: hessian @ vectors[:, 0],
        "Σv, 8 columns": lambda: covariance @ vectors,
    }
    found: dict[str, Any] = {"seconds": {}, "exchanged": {}}
    for product, call in products.items():
        call()
        with _Counted() as counted:
            call()
        found["exchanged"][product] = {"bytes": counted.bytes, "collectives": counted.collectives}
        found["seconds"][product] = statistics.median(_seconds(call) for _ in range(REPEATS))
    small, large = torch.zeros(1), torch.zeros(10_000_000)
    found["latency"] = statistics.median(_seconds(lambda: dist.all_reduce(small)) for _ in range(20))
    took = statistics.median(_seconds(lambda: dist.all_reduce(large)) for _ in range(5))
    sent = 2 * (shard.ranks - 1) / shard.ranks * large.numel() * large.element_size()
    found["bandwidth"] = sent / took
    if shard.rank == 0:
        out.write_text(json.dumps(found))
    dist.destroy_process_group()


def _seconds(call: Callable[[], Any]) -> float:
    dist.barrier()
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


class _Counted:
    """Within, bytes that go into collectives, and how many there are."""

    def __enter__(self) -> _Counted:
        self.bytes = self.collectives = 0
        self._kept = dist.all_reduce, dist.all_gather

        def all_reduce(tensor: Tensor, **options: Any) -> Any:
            self._count(tensor)
            return self._kept[0](tensor, **options)

        def all_gather(found: list[Tensor], tensor: Tensor, **options: Any) -> Any:
            self._count(tensor)
            return self._kept[1](found, tensor, **options)

        dist.all_reduce, dist.all_gather = all_reduce, all_gather
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce, dist.all_gather = self._kept

    def _count(self, tensor: Tensor) -> None:
        self.bytes += tensor.numel() * tensor.element_size()
        self.collectives += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
