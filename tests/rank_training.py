"""Trainings on several ranks, run under torchrun; each rank writes what its monitor reported to a JSON file.

``torchrun --nproc-per-node 2 rank_training.py OUT`` runs every function named ``train_*`` or ``refuse_*``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, distribute_module, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import noisescape as ns
from training_loops import micro_batches, small_net

STEPS, SIZE = 5, 4


def mine(step, ranks=2):
    """This rank's micro-batches of a step."""
    return step[dist.get_rank() :: ranks]


def run(
    model,
    optimizer,
    *,
    pieces=3,
    no_sync=None,
    spoil=None,
    steps=None,
    cast=torch.float64,
    scaler=None,
    every=STEPS,
    **options,
):
    """A loop over all steps: what the monitor reported."""
    monitor = ns.Monitor(model, optimizer, every=every, measure_every=1, **options)
    reports = []
    for step in steps or micro_batches(STEPS, 2 * pieces, SIZE):
        batches = mine(step)
        for index, (inputs, targets) in enumerate(batches):
            last = index == len(batches) - 1
            if options.get("announced"):
                monitor.begin_piece(len(inputs), 1 / len(batches))
            with no_sync() if no_sync is not None and not last else contextlib.nullcontext():
                loss = nn.functional.cross_entropy(model(inputs.to(cast)), targets) / len(batches)
                (scaler.scale(loss) if scaler is not None else loss).backward()
        if spoil is not None:
            spoil(model)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        if report := monitor.step():
            reports.append(report)
    return reports[-1] if reports else {}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def two_groups(model):
    return torch.optim.AdamW(
        [{"params": model[0].parameters(), "name": "first"}, {"params": model[2].parameters()}], lr=0.01, eps=1e-3
    )


# ---------------------------------------------------------------------- averaged


def train_ddp_one_piece():
    model = DistributedDataParallel(small_net())
    return run(model, sgd(model), pieces=1)


def train_ddp_no_sync():
    model = DistributedDataParallel(small_net())
    return run(model, sgd(model), no_sync=model.no_sync)


def train_ddp_announced():
    model = DistributedDataParallel(small_net())
    return run(model, sgd(model), no_sync=model.no_sync, announced=True)


def train_ddp_synchronised_each_time():
    model = DistributedDataParallel(small_net())
    return run(model, sgd(model))


def train_ddp_bucket_views():
    model = DistributedDataParallel(small_net(), gradient_as_bucket_view=True)
    return run(model, sgd(model), no_sync=model.no_sync)


def train_ddp_clipped():
    model = DistributedDataParallel(small_net())
    return run(
        model,
        sgd(model),
        no_sync=model.no_sync,
        spoil=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e-3),
    )


def train_ddp_static_graph():
    model = DistributedDataParallel(small_net(), static_graph=True)
    return run(model, sgd(model))


def train_ddp_unused_parameters():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small_net()
            self.unused = nn.Linear(3, 3).double()

        def forward(self, inputs):
            return self.body(inputs)

    model = DistributedDataParallel(Partly(), find_unused_parameters=True)
    return run(model, sgd(model), no_sync=model.no_sync)


def train_ddp_groups_and_metric():
    inner = small_net()
    optimizer = two_groups(inner)
    model = DistributedDataParallel(inner)
    return run(model, optimizer, no_sync=model.no_sync)


def train_ddp_compiled():
    model = torch.compile(DistributedDataParallel(small_net()), backend="aot_eager")
    return run(model, sgd(model))


def train_ddp_of_compiled():
    model = DistributedDataParallel(torch.compile(small_net(), backend="aot_eager"))
    return run(model, sgd(model), no_sync=model.no_sync)


def train_ddp_scaler():
    model = DistributedDataParallel(small_net().float())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    return run(model, sgd(model), no_sync=model.no_sync, cast=torch.float32, scaler=scaler)


def train_ddp_one_rank_overflows():
    model = DistributedDataParallel(small_net().float())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    steps = micro_batches(STEPS + 1, 6, SIZE)
    if dist.get_rank() == 1:
        steps[0][1][0][0, 0] = torch.inf  # of this rank's first micro-batch only
    return run(
        model, sgd(model), no_sync=model.no_sync, cast=torch.float32, scaler=scaler, steps=steps, every=STEPS
    )


def train_ddp_unequal_ranks():
    model = DistributedDataParallel(small_net())
    steps = micro_batches(STEPS, 6, SIZE)
    cut = [[(x[:3], y[:3]) if n % 2 else (x, y) for n, (x, y) in enumerate(step)] for step in steps]
    return run(model, sgd(model), no_sync=model.no_sync, steps=cut)


def train_alone():
    model = small_net()
    return run(model, sgd(model), alone=True)


# ---------------------------------------------------------------------- sharded


def sharded(*, by_layer=True, **options):
    model = small_net()
    if by_layer:
        fully_shard(model[0], **options)
        fully_shard(model[2], **options)
    return fully_shard(model, **options)


@contextlib.contextmanager
def unsynchronised(model):
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def train_fsdp_one_piece():
    model = sharded()
    return run(model, sgd(model), pieces=1)


def train_fsdp_no_sync():
    model = sharded()
    return run(model, sgd(model), no_sync=functools.partial(unsynchronised, model))


def train_fsdp_synchronised_each_time():
    model = sharded(by_layer=False)
    return run(model, sgd(model))


def train_fsdp_announced():
    model = sharded()
    return run(model, sgd(model), no_sync=functools.partial(unsynchronised, model), announced=True)


def train_fsdp_groups():
    model = sharded()
    return run(model, two_groups(model), no_sync=functools.partial(unsynchronised, model))


def train_fsdp_clipped():
    model = sharded()
    return run(model, sgd(model), spoil=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e-3))


def train_fsdp_half_precision():
    model = small_net().float()
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    return run(model, sgd(model), cast=torch.float32)


# ---------------------------------------------------------------------- beside the figures


def train_processes_exchange_nothing_between_reports():
    """How often the monitor reduced by itself."""
    model = DistributedDataParallel(small_net())
    calls = []
    original = dist.all_reduce
    dist.all_reduce = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    try:
        report = run(model, sgd(model), steps=micro_batches(2 * STEPS, 6, SIZE))
    finally:
        dist.all_reduce = original
    return {**report, "calls": len(calls)}


def train_only_the_first_rank_asks():
    model = DistributedDataParallel(small_net())
    optimizer = sgd(model)
    monitor = ns.Monitor(model, optimizer, every=STEPS, measure_every=1)
    report = {}
    for step in micro_batches(STEPS, 6, SIZE):
        for inputs, targets in mine(step):
            (nn.functional.cross_entropy(model(inputs), targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            report = monitor.step()
    return report or monitor.report()


def train_ranks_that_end_at_different_steps():
    """Reports and the parameters' sum, which a monitor's exchange would have spoiled."""
    sums = []
    for watched in (False, True):
        model = DistributedDataParallel(small_net())
        optimizer = sgd(model)
        monitor = ns.Monitor(model, optimizer, every=2, measure_every=1) if watched else None
        reports = []
        for own in (5 + 2 * dist.get_rank(), 4):
            with model.join() if own != 4 else contextlib.nullcontext():
                for step in micro_batches(own, 2, SIZE):
                    (inputs, targets) = mine(step)[0]
                    nn.functional.cross_entropy(model(inputs), targets).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    reports.append(monitor.step() if monitor is not None else {})
        sums.append(sum(float(parameter.detach().sum()) for parameter in model.parameters()))
    return {"reports": len([report for report in reports if report]), "same": float(sums[0] == sums[1])}


def train_ddp_low_rank_averages():
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    model = DistributedDataParallel(small_net())
    model.register_comm_hook(
        powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2),
        powerSGD_hook.powerSGD_hook,
    )
    return run(model, sgd(model))


def train_fsdp_sums():
    model = sharded()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
    return run(model, sgd(model))


def train_saved_and_resumed():
    """Saved by the first rank alone, at a report."""
    steps = micro_batches(2 * STEPS, 6, SIZE)
    whole = run(DistributedDataParallel(small := small_net()), sgd(small), steps=steps)
    inner = small_net()
    model, optimizer = DistributedDataParallel(inner), sgd(inner)
    first = ns.Monitor(model, optimizer, every=STEPS, measure_every=1)
    second = None
    for number, step in enumerate(steps):
        if number == STEPS:
            state = [first.state_dict()] if dist.get_rank() == 0 else [None]
            dist.broadcast_object_list(state)
            first.close()
            second = ns.Monitor(model, optimizer, every=STEPS, measure_every=1)
            second.load_state_dict(state[0])
        for inputs, targets in mine(step):
            (nn.functional.cross_entropy(model(inputs), targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = (second or first).step()
    return {"same": float(report == whole and bool(whole))}


def refuse_bare_model():
    model = small_net()
    ns.Monitor(model, sgd(model))


def refuse_flat_shards():
    class OnAnAccelerator(FullyShardedDataParallel):  # which it asks for
        def __init__(self, inner):
            nn.Module.__init__(self)
            self.inner = inner

    inner = small_net()
    ns.Monitor(nn.Sequential(OnAnAccelerator(inner)), sgd(inner))


def refuse_tensor_parallel():
    model = small_net()
    distribute_module(model, init_device_mesh("cpu", (2,)))
    assert all(parameter.placements == (Replicate(),) for parameter in model.parameters())
    ns.Monitor(model, sgd(model))


def refuse_partly_sharded():
    model = small_net()
    fully_shard(model[0])
    ns.Monitor(model, sgd(model))


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for name, function in list(globals().items()):
        if not name.startswith(("train_", "refuse_")):
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = function()
            except ValueError as error:
                result = {"error": str(error)}
        ours = [str(warning.message) for warning in caught if "gradient noise" in str(warning.message)]
        found[name] = {"report": result, "warnings": ours}
        dist.barrier()
        torch._dynamo.reset()
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
