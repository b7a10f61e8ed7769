"""The same measurement by one process and by several, each with a part of the samples: the numbers are the same.

``python many_processes.py`` is one process; ``torchrun --nproc-per-node 2 many_processes.py`` are two, here or,
with torchrun's own options, on as many machines as there are.
"""

import torch
import torch.distributed as dist
from torch import nn

import noisescape as ns
from noisescape.distributed import Shard


def main() -> None:
    if dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    shard = Shard.of_process_group() if dist.is_initialized() else None

    torch.manual_seed(0)  # the same model on every rank
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3))
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(600, 10, generator=generator)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()
    data = (inputs, targets) if shard is None else shard.part((inputs, targets))

    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, data, shard=shard)
    measured = ns.measure(risk, risk.parameters(), batch_size=20, rtol=0.1)
    walk = ns.simulate(risk, ns.SGD(batch_size=20), risk.parameters(), lr=0.1, steps=50, progress=False)
    if shard is None or shard.rank == 0:
        print(risk)
        print("Tr(HΣ)", measured.trace_h_sigma)
        print("critical batch size, Tr(C)/‖ḡ‖²:", measured.noise_scale)
        print(f"loss before and after 50 steps of SGD: {walk.records['loss'].values[[0, -1]].tolist()}")
    if shard is not None:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
