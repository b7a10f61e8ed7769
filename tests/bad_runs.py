"""As ``bad_calls``: what is got wrong with dynamics, runs, training, theory, experiments and their directories."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

import noisescape as ns
from bad_calls import BOWL, CE, EYE, F64, MODEL, NAN, OPTIMIZER, PAIR, POINTS, RISK, SMALL, START, THETA, Bad
from noisescape import distributed, theory, training
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.runs.places import open_runs
from noisescape.runs.run import Run
from noisescape.simulation import recorders
from noisescape.theory import basin, landscapes

WATCHED = theory.ExitTimes(torch.tensor([3, 5, 12]), torch.tensor([True, True, False]), 0.1)
LOSSES = torch.rand(8, generator=torch.Generator().manual_seed(0))


def run(dynamics: Any = None, theta: Any = START, risk: Any = BOWL, **changed: Any) -> object:
    given: dict[str, Any] = {"lr": 0.1, "steps": 3, "progress": False, **changed}
    return ns.simulate(risk, ns.SGD(2) if dynamics is None else dynamics, theta, **given)


def branched(**changed: Any) -> object:
    given: dict[str, Any] = {
        **{"model": MODEL, "optimizer": OPTIMIZER, "loss": CE, "data": PAIR, "progress": False},
        **{"batch_size": 2, "samples": 4, "tolerance": 0.1, "multiples": (1, 2)},
    }
    return ns.branched_check(**(given | changed))


def exits(**changed: Any) -> object:
    given: dict[str, Any] = {"lr": 0.1, "steps": 3, "replicas": 2, "inside": lambda x: x.norm(dim=-1) < 9}
    return theory.exit_times(BOWL, ns.SGD(2), START, progress=False, **(given | changed))


def raising(records: Any) -> bool:
    raise KeyError("their own")


SIMULATED: dict[str, Bad] = {
    "a model for a risk": Bad(lambda: ns.simulate(MODEL, ns.GD(), START, lr=0.1, steps=2), "EmpiricalRisk"),
    "the class of a dynamics": Bad(lambda: ns.simulate(BOWL, ns.SGD, START, lr=0.1, steps=2), "the class SGD"),
    "the name of a dynamics": Bad(lambda: ns.simulate(BOWL, "sgd", START, lr=0.1, steps=2), "dynamics"),
    "an optimiser": Bad(lambda: ns.simulate(BOWL, OPTIMIZER, START, lr=0.1, steps=2), "dynamics must be one"),
    "θ a list": Bad(lambda: ns.simulate(BOWL, ns.GD(), [0.0] * 3, lr=0.1, steps=2), "torch.Tensor"),
    "θ of float32": Bad(lambda: ns.simulate(BOWL, ns.GD(), START.float(), lr=0.1, steps=2), "θ is torch.float32"),
    "θ too short": Bad(lambda: ns.simulate(BOWL, ns.GD(), START[:2], lr=0.1, steps=2), "θ must have shape (3,)"),
    "θ NaN": Bad(lambda: ns.simulate(BOWL, ns.GD(), START * NAN, lr=0.1, steps=2), "the starting θ is not finite"),
    "steps=True": Bad(lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=True), "steps must be an int"),
    "1e3 steps": Bad(lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=1e3), "1000.0; write 1000"),
    "a rate of NaN": Bad(lambda: ns.simulate(BOWL, ns.GD(), START, lr=NAN, steps=2), "lr must be positive"),
    "a rate as text": Bad(lambda: ns.simulate(BOWL, ns.GD(), START, lr="0.1", steps=2), "lr must be a number"),
    "a schedule of NaN": Bad(lambda: ns.simulate(BOWL, ns.GD(), START, lr=lambda t: NAN, steps=2), "lr(0)"),
    "a schedule of None": Bad(lambda: ns.simulate(BOWL, ns.GD(), START, lr=lambda t: None, steps=2), "lr(0)"),
    "no replicas": Bad(lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, replicas=0), "replicas"),
    "a recorder for recorders": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, record=recorders.loss), "recorders by name"
    ),
    "a recorder that is text": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, record={"loss": "loss"}), "recorder 'loss'"
    ),
    "a recorder that gives None": Bad(
        lambda: ns.simulate(
            BOWL, ns.GD(), START, lr=0.1, steps=2, record={"own": lambda r, t: None}, progress=False
        ),
        "recorder 'own' returned NoneType",
    ),
    "a recorder that gives θ": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, record={"own": lambda r, t: t}, progress=False),
        "recorder 'own' returned shape (3,)",
    ),
    "until with replicas": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, replicas=2, until=lambda r: True), "until"
    ),
    "until that is no function": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, until=True), "until must be a function"
    ),
    "until that gives a tensor": Bad(
        lambda: ns.simulate(
            BOWL, ns.GD(), START, lr=0.1, steps=2, until=lambda r: r["loss"].values > 1, progress=False
        ),
        "until must answer True or False, not Tensor",
    ),
    "a folder for a checkpoint": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, checkpoint=".", progress=False), "directory"
    ),
    "a checkpoint nowhere": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, checkpoint="no/such/c", progress=False),
        "no/such",
    ),
    "checkpoints never": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, checkpoint_seconds=NAN), "checkpoint_seconds"
    ),
    "another generator than a seed": Bad(
        lambda: ns.simulate(BOWL, ns.GD(), START, lr=0.1, steps=2, seed=torch.Generator()), "seed must be an int"
    ),
}

TRAINED: dict[str, dict[str, Bad]] = {
    "Monitor": {
        "the class of a model": Bad(lambda: ns.Monitor(nn.Linear, OPTIMIZER), "model"),
        "the class of an optimiser": Bad(lambda: ns.Monitor(MODEL, torch.optim.SGD), "optimiser"),
        "no optimiser": Bad(lambda: ns.Monitor(MODEL, None), "optimiser"),
        "an optimiser of another model": Bad(
            lambda: ns.Monitor(nn.Linear(3, 3), OPTIMIZER), "none of the model's parameters"
        ),
        "a report at no step": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, every=0), "every is 0"),
        "every as True": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, every=True), "every is True"),
        "a batch as text": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, batch_size="32"), "batch_size must be an int"),
        "an overhead in per cent": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, overhead=5), "overhead"),
        "a flag as text": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, split="no"), "split must be True or False"),
        "an accumulation in words": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, accumulation="avg"), "'avg'"),
        "samples without a loss": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, probe=PAIR), "give loss="),
        "a loss's class": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, loss=nn.MSELoss), "loss"),
        "a prefix of None": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, prefix=None), "prefix must be text"),
        "an output that is no module": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER, outputs=["head"]), "outputs"),
        "a state of something else": Bad(
            lambda: ns.Monitor(MODEL, OPTIMIZER).load_state_dict({"steps": 1}), "no state of a Monitor"
        ),
        "pieces that are not announced": Bad(lambda: ns.Monitor(MODEL, OPTIMIZER).begin_piece(4), "announced=True"),
        "few held-out samples": Bad(lambda: training.Probe(MODEL, CE, (PAIR[0][:3], PAIR[1][:3])), "at least 8"),
    },
    "as_if_batch": {
        "a mean": Bad(lambda: ns.as_if_batch(LOSSES.mean(), 4), 'reduction="none"'),
        "whole numbers": Bad(lambda: ns.as_if_batch(torch.arange(8), 4), "floating-point tensor, not torch.int64"),
        "a list": Bad(lambda: ns.as_if_batch([0.5] * 8, 4), "not list"),
        "more than there are": Bad(lambda: ns.as_if_batch(LOSSES, 9), "only 8 losses"),
        "a seed for a generator": Bad(lambda: ns.as_if_batch(LOSSES, 4, generator=0), "generator must be"),
        "one sample": Bad(lambda: ns.as_if_batch(LOSSES[:1], 0.5), "one sample has no spread"),
        "none": Bad(lambda: ns.as_if_batch(LOSSES[:0], 1), "0 losses"),
    },
    "batch_size_advice": {
        "a scale as text": Bad(lambda: ns.batch_size_advice("100", batch_size=4), "noise_scale must be a number"),
        "no scale": Bad(lambda: ns.batch_size_advice(None, batch_size=4), "noise_scale must be a number, not None"),
        "a scale below 0": Bad(lambda: ns.batch_size_advice(-1.0, batch_size=4), "noise_scale must be at least 0"),
        "an unknown optimiser": Bad(lambda: ns.batch_size_advice(1.0, batch_size=4, optimizer="lion"), "'lion'"),
        "the class of an optimiser": Bad(
            lambda: ns.batch_size_advice(1.0, batch_size=4, optimizer=torch.optim.Adam), "optimizer must be"
        ),
        "ends the wrong way round": Bad(
            lambda: ns.batch_size_advice(5.0, batch_size=4, noise_scale_low=9.0, noise_scale_high=1.0),
            "no interval",
        ),
        "a target that is B": Bad(
            lambda: ns.batch_size_advice(1.0, batch_size=4, target=4), "target is batch_size"
        ),
    },
    "BatchSizeAdvice": {
        "an empty report": Bad(lambda: ns.BatchSizeAdvice.from_report({}), "noise/"),
        "no report": Bad(lambda: ns.BatchSizeAdvice.from_report(None), "report"),
        "a path for a log": Bad(lambda: ns.BatchSizeAdvice.from_log("log.csv"), "read_log"),
        "a log that is not there": Bad(lambda: training.read_log("absent.csv"), "absent.csv"),
        "a folder without a log": Bad(lambda: training.read_log("."), "no log"),
    },
    "branched_check": {
        "the class of a model": Bad(
            lambda: ns.branched_check(nn.Linear, OPTIMIZER, CE, PAIR, batch_size=2, samples=4, tolerance=0.1),
            "model must be a torch.nn.Module",
        ),
        "multiples without 1": Bad(lambda: branched(multiples=(2, 4)), "multiples must be 1 and larger ones"),
        "a multiple for multiples": Bad(lambda: branched(multiples=4), "multiples must be whole numbers"),
        "a seed of True": Bad(lambda: branched(seeds=True), "seeds"),
        "one seed": Bad(lambda: branched(seeds=1), "seeds must be at least 2"),
        "a tolerance as text": Bad(lambda: branched(tolerance="1%"), "tolerance must be a number, not '1%'"),
        "batches larger than the data": Bad(lambda: branched(batch_size=8), "exceed the 10 samples"),
        "no batch": Bad(lambda: branched(batch_size=None), "batch_size must be a whole number"),
        "a file for a directory": Bad(lambda: branched(out=__file__), "bad_runs.py"),
    },
}

DYNAMICS: dict[str, dict[str, Bad]] = {
    "SGD": {
        "a batch of half": Bad(lambda: run(ns.SGD(2.5)), "batch_size must be an int, not 2.5"),
        "sampling by another name": Bad(
            lambda: ns.SGD(2, sampling="shuffle"), "sampling is 'independent' or 'epoch'"
        ),
        "epochs of more than there are": Bad(lambda: run(ns.SGD(7, "epoch")), "exceeds the 6 samples"),
        "replacement as text": Bad(lambda: run(ns.SGD(2, replacement="no")), "replacement must be True or False"),
    },
    "SVAG": {"ℓ of half": Bad(lambda: run(ns.SVAG(2, ell=1.5)), "ell must be an int, not 1.5")},
    "Additive": {
        "a matrix": Bad(lambda: ns.Additive(torch.eye(3)), "must be an operator (risk.noise_covariance(...))"),
        "of another size": Bad(
            lambda: run(ns.Additive(SMALL)), "the covariance is of 2 parameters, the risk has 3"
        ),
    },
    "GDGradientPenalty": {
        "no number": Bad(lambda: run(ns.GDGradientPenalty(None)), "strength must be a number, not None"),
        "NaN": Bad(lambda: run(ns.GDGradientPenalty(NAN)), "strength must be at least 0, not nan"),
    },
    "GLDConstant": {"an infinite ρ": Bad(lambda: run(ns.GLDConstant(math.inf)), "rho must be finite, not inf")},
    "GLDDiagonal": {
        "a refresh of half": Bad(lambda: run(ns.GLDDiagonal(2, refresh=1.5)), "refresh must be an int")
    },
    "GLDDynamic": {"one batch": Bad(lambda: run(ns.GLDDynamic(2, batches=1)), "batches must be at least 2, not 1")},
    "GLDFull": {"more than there are": Bad(lambda: run(ns.GLDFull(7, replacement=False)), "exceeds the 6 samples")},
    "GLDHessian": {"more directions than D": Bad(lambda: run(ns.GLDHessian(2, k=4)), "k must lie in 1..D = 3")},
    "GLDLeading": {
        "half a direction": Bad(lambda: run(ns.GLDLeading(2, k=1.5)), "k must be an int, not 1.5"),
        "a flag as text": Bad(lambda: run(ns.GLDLeading(2, k=1, rescale="no")), "rescale must be True or False"),
    },
    "GLDShuffled": {"a seed as text": Bad(lambda: run(ns.GLDShuffled(2, shuffle_seed="0")), "shuffle_seed")},
    "GLDShuffledWithinLayers": {
        "a seed below 0": Bad(lambda: run(ns.GLDShuffledWithinLayers(2, shuffle_seed=-1)), "shuffle_seed")
    },
    "GLDTopEigenvector": {
        "no refresh": Bad(lambda: run(ns.GLDTopEigenvector(2, refresh=0)), "refresh must be at least 1, not 0")
    },
    "LabelNoise": {
        "tensors for a risk": Bad(lambda: run(ns.LabelNoise(2, POINTS)), "perturbed must be a risk, not Tensor"),
        "the risk itself": Bad(lambda: run(ns.LabelNoise(2, BOWL)), "samples twice"),
    },
    "MatchedTrace": {
        "the class of a dynamics": Bad(lambda: ns.MatchedTrace(ns.GLDConstant, 1.0), "inner must be a dynamics"),
        "no noise": Bad(lambda: ns.MatchedTrace(ns.GD(), 1.0), "GD has no noise to rescale"),
        "a trace of NaN": Bad(lambda: run(ns.MatchedTrace(ns.GLDConstant(1.0), NAN)), "trace_target"),
    },
    "Yoked": {
        "a list of traces": Bad(lambda: ns.Yoked(ns.GLDConstant(1.0), [1.0, 2.0]), "traces must be a vector (T,)"),
        "fewer than steps": Bad(
            lambda: run(ns.Yoked(ns.GLDConstant(1.0), torch.ones(2))), "has noise for 2 steps, not for 3"
        ),
    },
    "dynamics_by_name": {
        "an unknown one": Bad(lambda: ns.dynamics_by_name("sdg", batch_size=2), "did you mean sgd"),
        "no name": Bad(lambda: ns.dynamics_by_name(None), "name is text"),
        "what it needs is missing": Bad(lambda: ns.dynamics_by_name("sgd"), "dynamics 'sgd' needs batch_size"),
    },
    "simulate": SIMULATED,
    "recorders": {
        "a batch of 0": Bad(lambda: recorders.indicator(0), "batch_size must be at least 1, not 0"),
        "k of 0": Bad(lambda: recorders.conditions(4, k=0), "k must be at least 1, not 0"),
        "δ of 0": Bad(lambda: recorders.sharpness(0.0), "delta must be positive, not 0.0"),
        "steps that are floats": Bad(lambda: recorders.at_steps(recorders.loss, [0.5]), "steps must be an int"),
        "a step for steps": Bad(lambda: recorders.at_steps(recorders.loss, 5), "steps"),
        "steps that never come": Bad(
            lambda: run(record={"late": recorders.at_steps(recorders.loss, [99])}), "recorder 'late' is due at none"
        ),
    },
}

ELSEWHERE: dict[str, dict[str, Bad]] = {
    "landscapes": {
        "H of whole numbers": Bad(lambda: landscapes.quadratic(torch.eye(3).long(), POINTS), "hessian must be"),
        "H that is not symmetric": Bad(
            lambda: landscapes.quadratic(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.ones(4, 2)), "symmetric"
        ),
        "gradients of another width": Bad(lambda: landscapes.quadratic(EYE, POINTS), "gradients must be (N, 2)"),
        "points in three dimensions": Bad(lambda: landscapes.toy_2d(POINTS), "points must be a tensor (N, 2)"),
        "an unknown geometry": Bad(lambda: landscapes.toy_2d(POINTS[:, :2], "round"), "unknown geometry 'round'"),
    },
    "loss_along": {
        "a path of one knot": Bad(lambda: ns.loss_along(BOWL, START[None]), "at least two knots"),
        "a list for a path": Bad(lambda: ns.loss_along(BOWL, [START, START]), "path must be a tensor"),
    },
    "theory": {
        "a list for H": Bad(lambda: theory.stationary_covariance([[1.0]], EYE, lr=0.1), "hessian must be"),
        "H of another size than Σ": Bad(
            lambda: theory.expected_excess_loss(EYE, torch.eye(3, dtype=F64), lr=0.1, steps=3), "must be alike"
        ),
        "a rate below 0": Bad(lambda: theory.ou_stationary_covariance(EYE, EYE, lr=-0.1), "lr must be positive"),
        "a time of NaN": Bad(lambda: theory.ou_expected_excess_loss(EYE, EYE, lr=0.1, time=NAN), "time"),
        "a rate too large": Bad(lambda: theory.stationary_covariance(EYE, EYE, lr=3.0), "no stationary law"),
        "exits from a class": Bad(
            lambda: theory.exit_times(
                BOWL, ns.SGD, START, lr=0.1, steps=3, replicas=2, inside=lambda x: x[:, 0] < 1
            ),
            "the class SGD",
        ),
        "a region that gives numbers": Bad(lambda: exits(inside=lambda x: x.norm(dim=-1)), "one bool a replica"),
        "a region that is none": Bad(lambda: exits(inside=None), "inside must be a function"),
        "a start outside": Bad(lambda: exits(inside=lambda x: x[:, 0] > 1), "outside of the region"),
        "replicas of half": Bad(lambda: exits(replicas=2.5), "replicas must be an int, not 2.5"),
        "times as a list": Bad(lambda: theory.exit_rate([3, 5]), "times must be ExitTimes, not list"),
        "no barriers": Bad(lambda: theory.fit_exit_law([], []), "two different barriers"),
        "barriers as text": Bad(lambda: theory.fit_exit_law([WATCHED] * 2, ["1", "2"]), "barriers"),
        "a momentum of 1": Bad(lambda: theory.batch_sharpness_limits(0.1, 1.0), "momentum lie in [0, 1)"),
        "more ones than there are": Bad(lambda: theory.quadratic_regression(3, 4, 2), "sparsity must lie in 1.."),
        "a trajectory for losses": Bad(lambda: theory.loss_account(run()), "was not recorded"),
        "a record for a trajectory": Bad(
            lambda: theory.loss_account({}), "trajectory must be a Trajectory, not dict"
        ),
        "few numbers": Bad(lambda: theory.stable_index(torch.ones(9)), "at least 64 numbers"),
        "an unknown curvature": Bad(
            lambda: theory.mean_square_threshold(RISK, THETA, batch_size=4, curvature="fisher"), "'fisher'"
        ),
        "chains that are too short": Bad(
            lambda: theory.local_learning_coefficient(BOWL, START, localisation=0.1, lr=0.01, steps=1),
            "raise steps",
        ),
        "iterates without names": Bad(lambda: basin.at_matched_loss(BOWL, [START], lr=0.1, steps=3), "by name"),
    },
    "distributed": {
        "a rank that is not there": Bad(lambda: distributed.Shard(2, 2), "rank must be at most 1, not 2"),
        "no ranks": Bad(lambda: distributed.Shard(0, 0), "ranks must be at least 1, not 0"),
        "ranks as text": Bad(lambda: distributed.Shard(0, "2"), "ranks must be an int, not '2'"),
        "no process group": Bad(lambda: distributed.Shard.of_process_group(), "init_process_group"),
        "fewer samples than ranks": Bad(lambda: distributed.Shard(0, 4).part(POINTS[:2]), "fewer than the 4 ranks"),
        "a stream": Bad(lambda: distributed.Shard(0, 2).part(iter([1, 2])), "numbered samples"),
    },
    "experiments": {
        "an unknown preset": Bad(lambda: EXPERIMENTS["toy-2d"].configure("fast"), "unknown preset 'fast'"),
        "no preset": Bad(lambda: EXPERIMENTS["toy-2d"].configure(None), "preset"),
        "a constant that is none": Bad(lambda: EXPERIMENTS["toy-2d"].configure(stepz=3), "stepz"),
        "steps as text": Bad(lambda: EXPERIMENTS["toy-2d"].configure(steps="3"), "steps must be an int, not '3'"),
        "steps of half": Bad(lambda: EXPERIMENTS["digits"].configure(steps=2.5), "steps must be an int, not 2.5"),
        "a rate as text": Bad(lambda: EXPERIMENTS["digits"].configure(lr="0.1"), "lr must be a number, not '0.1'"),
        "a seed of True": Bad(lambda: EXPERIMENTS["digits"].configure(seed=True), "seed must be an int, not True"),
        "a text for names": Bad(lambda: EXPERIMENTS["digits"].configure(dynamics="sgd"), "dynamics"),
        "an infinite rate": Bad(lambda: EXPERIMENTS["toy-2d"].configure(lr=math.inf), "lr must be finite"),
        "seeds without end": Bad(
            lambda: EXPERIMENTS["svhn"].configure(seeds=10**18), "seeds must be at most 1000000, not 10"
        ),
        "replicas without end": Bad(
            lambda: EXPERIMENTS["toy-2d"].configure(replicas=10**18), "replicas must be at most 1000000, not 10"
        ),
        "steps without end": Bad(
            lambda: EXPERIMENTS["toy-2d"].configure(steps=10**18), "steps must be at most 1000000000, not 10"
        ),
        "no seeds": Bad(lambda: EXPERIMENTS["svhn"].configure(seeds=0), "seeds must be at least 1, not 0"),
    },
    "runs": {
        "a run that is not there": Bad(lambda: Run.open(Path("absent")), "absent"),
        "a folder that is no run": Bad(lambda: Run.open(Path()), "holds no run.json"),
        "a file": Bad(lambda: Run.open(Path(__file__)), "bad_runs.py"),
        "no runs at all": Bad(lambda: open_runs([]), "no run"),
        "a folder without runs": Bad(lambda: open_runs([Path()]), "run"),
    },
}

MATRIX: dict[str, dict[str, Bad]] = DYNAMICS | TRAINED | ELSEWHERE
