"""Risks of models whose parameters several ranks share: ``torchrun --nproc-per-node 2 sharded_models.py OUT``."""

from __future__ import annotations

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, distribute_module, distribute_tensor, init_device_mesh
from torch.distributed.tensor import Shard as Split
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import noisescape as ns
from cases import F64, classes, normal
from noisescape.distributed import Shard

INPUTS, TARGETS = normal(21, 6, seed=1), classes(21, of=3, seed=2)
LOSS = nn.functional.cross_entropy


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64)


def fsdp_layers(mesh):
    model = net()
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp_whole(mesh):
    return fully_shard(net(), mesh=mesh)


def fsdp_groups(mesh):
    model = net()
    fully_shard([model[0], model[2]], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp_not_resharded(mesh):
    return fully_shard(net(), mesh=mesh, reshard_after_forward=False)


def fsdp_used(mesh):
    """After a step of training."""
    model = fsdp_layers(mesh)
    model(INPUTS[:2]).sum().backward()
    return model


def dtensors(mesh):
    def split(name, module, mesh):
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Split(0)])))

    return distribute_module(net(), mesh, split)


def replicated(mesh):
    return distribute_module(net(), mesh)


def ddp(mesh):
    return DistributedDataParallel(net())


KINDS = [fsdp_layers, fsdp_whole, fsdp_groups, fsdp_not_resharded, fsdp_used, dtensors, replicated, ddp]


def asked(risk, theta):
    """Gradient, curvature and noise, as numbers."""
    v = normal(len(theta), 2, seed=3)
    return {
        "parameters": risk.parameters().tolist(),
        "gradient": risk.gradient(theta).tolist(),
        "hvp": risk.hvp(theta, v[:, 0]).tolist(),
        "hessian": (risk.hessian(theta) @ v).tolist(),
        "forms of noise": risk.noise_covariance(theta, 4).quadratic_forms(v).tolist(),
        "trace": ns.trace(risk.hessian(theta), rtol=0.2).value,
        "alignment": ns.product_trace(risk.hessian(theta), risk.noise_covariance(theta, 4), rtol=0.2).value,
    }


def trained(model, mesh):
    """Its parameters after two steps: they must not depend on whether a risk has looked at it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = INPUTS[:6]
    if isinstance(next(model.parameters()), DTensor) and not isinstance(model, FSDPModule):
        inputs = distribute_tensor(inputs, mesh)
    for _ in range(2):
        outputs = model(inputs)
        LOSS(outputs.full_tensor() if isinstance(outputs, DTensor) else outputs, TARGETS[:6]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach().flatten().tolist() for p in model.parameters()]


def found(make, mesh, shard):
    model = make(mesh)
    before = [
        (type(m), dict(m._parameters), list(m._forward_pre_hooks), list(m._forward_hooks)) for m in model.modules()
    ]
    risk = ns.EmpiricalRisk(model, LOSS, shard.part((INPUTS, TARGETS)), shard=shard)
    theta = torch.cat([p.detach().flatten() for p in net().parameters()])
    answers = asked(risk, theta + 0.1)
    after = [
        (type(m), dict(m._parameters), list(m._forward_pre_hooks), list(m._forward_hooks)) for m in model.modules()
    ]
    return {
        **answers,
        "unchanged": str(before) == str(after),
        "trained": trained(model, mesh) == trained(make(mesh), mesh),
    }


def fsdp1(mesh):
    return FullyShardedDataParallel(net(), device_id=torch.device("cpu"))


def frozen(mesh):
    model = net()
    model[0].requires_grad_(False)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(mesh):
    return parallelize_module(net(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


REFUSED = [fsdp1, frozen, tensor_parallel]


def refusal(make, mesh, shard):
    try:
        ns.EmpiricalRisk(make(mesh), LOSS, shard.part((INPUTS, TARGETS)), shard=shard)
    except ns.errors.NoisescapeError as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    shard, mesh = Shard.of_process_group(), init_device_mesh("cpu", (dist.get_world_size(),))
    report = {make.__name__: found(make, mesh, shard) for make in KINDS}
    report |= {make.__name__: refusal(make, mesh, shard) for make in REFUSED}
    (Path(sys.argv[1]) / f"{shard.rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
