"""Two real processes under torchrun report what one process finds by autograd from the same micro-batches."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from noisescape.training.noise_scale import smooth
from torchrun import of_ranks
from training_loops import micro_batches, of_weighted, piece_gradients, small_net

pytestmark = pytest.mark.slow

STEPS, SIZE = 5, 4
AVERAGED = [
    "ddp_no_sync",
    "ddp_announced",
    "ddp_synchronised_each_time",
    "ddp_bucket_views",
    "ddp_static_graph",
    "ddp_unused_parameters",
    "ddp_compiled",
    "ddp_of_compiled",
    "fsdp_no_sync",
    "fsdp_announced",
    "fsdp_synchronised_each_time",
]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """What each rank's monitor reported, by training."""
    return of_ranks("rank_training.py", 2, tmp_path_factory.mktemp("ranks"))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def two_groups(model):
    return torch.optim.AdamW(
        [{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.01, eps=1e-3
    )


@functools.cache
def by_autograd(pieces=3, make=sgd, sizes=None, clip=None, steps=STEPS, first=0):
    """(Tr Ĉ, ‖ĝ‖²) of each step by group, (steps, groups, 2), in one process; then the same in the metric."""
    model = small_net()
    optimizer = make(model)
    sizes = sizes or (SIZE,) * (2 * pieces)
    weights = [1 / len(sizes)] * len(sizes)
    cut = sum(parameter.numel() for parameter in model[0].parameters())
    parts = [slice(0, cut), slice(cut, None)]
    plain, metric = [], []
    for step in micro_batches(steps + first, 2 * pieces, SIZE)[first:]:
        batches = [(inputs[:size], targets[:size]) for (inputs, targets), size in zip(step, sizes, strict=True)]
        gradients = piece_gradients(model, batches)
        plain.append([of_weighted(gradients[:, part], sizes, weights) for part in parts])
        if optimizer.state and "exp_avg_sq" in next(iter(optimizer.state.values())):
            roots = []
            for parameter in model.parameters():
                state = optimizer.state[parameter]
                second = state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))
                roots.append((1 / (second.sqrt() + 1e-3)).sqrt().flatten())
            scaled = gradients * torch.cat(roots)
            metric.append([of_weighted(scaled[:, part], sizes, weights) for part in parts])
        mean, at = gradients.mean(0), 0
        for parameter in model.parameters():
            parameter.grad = mean[at : at + parameter.numel()].view_as(parameter).clone()
            at += parameter.numel()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return np.array(plain), np.array(metric)


def assert_found(report, values, place="", rel=1e-9):
    expected = smooth(values[:, 0], values[:, 1])
    assert report[f"noise/{place}trace_covariance"] == pytest.approx(expected.trace, rel=rel)
    assert report[f"noise/{place}squared_gradient_norm"] == pytest.approx(expected.squared_norm, rel=rel)
    assert report[f"noise/{place}scale"] == pytest.approx(expected.scale, rel=10 * rel)
    assert report[f"noise/{place}scale_low"] == pytest.approx(expected.scale_low, rel=10 * rel)


def of_both(reported, name):
    first, second = (rank[f"train_{name}"] for rank in reported)
    assert first["warnings"] == second["warnings"] == []
    assert first["report"] == second["report"], "every rank reports the same"
    return first["report"]


@pytest.mark.parametrize("name", AVERAGED)
def test_pieces_of_all_ranks(reported, name):
    report = of_both(reported, name)
    assert_found(report, by_autograd()[0].sum(1))
    assert report["noise/batch_size"] == 6 * SIZE
    assert report["noise/pieces"] == 6
    assert report["noise/skipped_steps"] == 0


@pytest.mark.parametrize("name", ["ddp_one_piece", "fsdp_one_piece"])
def test_one_piece_a_rank(reported, name):
    assert_found(of_both(reported, name), by_autograd(pieces=1)[0].sum(1))


@pytest.mark.parametrize("name", ["ddp_clipped", "fsdp_clipped"])
def test_clipping_comes_after_the_reading(reported, name):
    assert_found(of_both(reported, name), by_autograd(clip=1e-3)[0].sum(1))


@pytest.mark.parametrize("name", ["ddp_groups_and_metric", "fsdp_groups"])
def test_groups(reported, name):
    report = of_both(reported, name)
    plain, metric = by_autograd(make=two_groups)
    assert_found(report, plain.sum(1))
    assert_found(report, plain[:, 0], "group/first/")
    assert_found(report, plain[:, 1], "group/1/")
    if name.startswith("ddp"):
        assert_found(report, metric.sum(1), "preconditioned/", rel=1e-6)
    else:
        assert "noise/preconditioned/scale" not in report, "the optimiser's state is sharded"


def test_scaled_gradients(reported):
    assert_found(of_both(reported, "ddp_scaler"), by_autograd()[0].sum(1), rel=1e-4)


def test_a_step_in_which_one_rank_overflows_is_skipped_on_all(reported):
    report = of_both(reported, "ddp_one_rank_overflows")
    assert_found(report, by_autograd(first=1)[0].sum(1), rel=1e-4)
    assert report["noise/skipped_steps"] == 1


def test_ranks_with_smaller_batches(reported):
    report = of_both(reported, "ddp_unequal_ranks")
    assert_found(report, by_autograd(sizes=(4, 3) * 3)[0].sum(1))
    assert report["noise/batch_size"] == 21


def test_sharded_in_half_precision(reported):
    report = of_both(reported, "fsdp_half_precision")
    values = by_autograd()[0].sum(1)
    assert report["noise/trace_covariance"] == pytest.approx(values[:, 0].mean(), rel=0.02)


def test_a_process_that_trains_by_itself(reported):
    first, second = (rank["train_alone"]["report"] for rank in reported)
    assert first["noise/trace_covariance"] != second["noise/trace_covariance"]
    assert first["noise/pieces"] == second["noise/pieces"] == 3


def test_processes_exchange_nothing_between_reports(reported):
    assert of_both(reported, "processes_exchange_nothing_between_reports")["calls"] == 2, "one at each report"


def test_any_rank_may_ask_for_the_report(reported):
    assert_found(of_both(reported, "only_the_first_rank_asks"), by_autograd()[0].sum(1))


def test_ranks_that_end_at_different_steps_exchange_nothing(reported):
    for rank in reported:
        found = rank["train_ranks_that_end_at_different_steps"]
        assert found["report"] == {"reports": 0, "same": 1.0}
        assert any("ranks may end at different steps" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("name", "match"), [("ddp_low_rank_averages", "powerSGD_hook"), ("fsdp_sums", "set_gradient_divide_factor")]
)
def test_averages_that_are_no_mean_are_refused(reported, name, match):
    for rank in reported:
        assert rank[f"train_{name}"]["report"] == {}
        assert any(match in warning for warning in rank[f"train_{name}"]["warnings"])


def test_a_state_that_one_rank_saved_goes_on_on_all(reported):
    assert of_both(reported, "saved_and_resumed")["same"] == 1


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("bare_model", "2 processes run, but the model is neither DistributedDataParallel nor fully_shard"),
        ("flat_shards", "use fully_shard (FSDP2)"),
        ("tensor_parallel", "tensor parallelism"),
        ("partly_sharded", "'2.weight' is outside of fully_shard"),
    ],
)
def test_what_cannot_be_read_is_refused(reported, name, match):
    for rank in reported:
        assert match in rank[f"refuse_{name}"]["report"]["error"]


def test_replicated_shards_on_four_processes(tmp_path):
    reports = of_ranks("hybrid_training.py", 4, tmp_path)
    assert all(report == reports[0] for report in reports)
    assert_found(reports[0], by_autograd(pieces=4)[0].sum(1))
    assert reports[0]["noise/pieces"] == 8
