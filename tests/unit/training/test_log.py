"""A monitor's figures come back from every log as they went in."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from noise_logs import WRITERS, as_csv, as_events, as_json_lines, as_wandb, probed, reports
from noisescape.errors import CorruptFileError, DataError, FailedError, MissingPathError, NoFiguresError
from noisescape.training import NoiseLog, read_log

SINGLE = {"tensorboard", "tensorboard, new style", "lightning tensorboard", "transformers tensorboard"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that a logger keeps for itself is written outside."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.parametrize("kind", WRITERS)
def test_every_logger_gives_the_reported_figures_back(kind: str, tmp_path: Path) -> None:
    rows = reports(groups=True)
    rows[1] = probed(rows[1])
    log = read_log(WRITERS[kind](rows, tmp_path / "log"))
    assert log.steps.tolist() == [100, 200, 300]
    assert set(log.columns) == set(rows[1])
    for key, column in log.columns.items():
        expected = np.array([row.get(key, math.nan) for row in rows])
        if kind in SINGLE:  # event files keep single precision
            expected = expected.astype(np.float32)
        np.testing.assert_array_equal(column, expected, err_msg=key)
    assert log.columns["noise/scale_high"][0] == math.inf
    assert log.groups == ["body", "head"]
    assert log.path.exists()
    assert log.written == pytest.approx(log.path.stat().st_mtime, abs=60)


def test_values_looked_up_at_the_end() -> None:
    columns = {
        "noise/scale": np.array([1.0, 2.0, math.nan]),
        "noise/scale_high": np.array([5.0, math.inf, math.nan]),
        "noise/lr": np.array([0.3, 0.2, 0.1]),
    }
    log = NoiseLog(Path("log.csv"), np.array([1, 2, 3]), columns)
    assert log.last("noise/scale") == 2.0
    assert log.last("noise/scale_high") == 5.0
    assert math.isnan(log.last("noise/absent"))
    assert log.at_last("noise/scale") == {"noise/scale": 2.0, "noise/scale_high": math.inf, "noise/lr": 0.2}
    assert log.at_last("noise/absent") == {}


# ---------------------------------------------------------------------- steps


def test_of_a_resumed_training_the_second_attempt_counts(tmp_path: Path) -> None:
    first = [{"noise/step": step, "noise/scale": 1.0} for step in (10, 20, 30, 40)]
    second = [{"noise/step": step, "noise/scale": 2.0} for step in (20, 30)]
    log = read_log(as_json_lines(first + second, tmp_path / "log.jsonl"))
    assert log.steps.tolist() == [10, 20, 30]
    assert log.columns["noise/scale"].tolist() == [1.0, 2.0, 2.0]


def test_two_event_files_are_one_training(tmp_path: Path) -> None:
    as_events(reports([100, 200, 300], scale=10.0), tmp_path)
    [first] = tmp_path.iterdir()
    first.rename(tmp_path / "events.out.tfevents.0")
    as_events(reports([300, 400], scale=20.0), tmp_path)
    log = read_log(tmp_path)
    assert log.steps.tolist() == [100, 200, 300, 400]
    assert log.columns["noise/squared_gradient_norm"][2] == np.float32(500 / 20)


def test_of_event_files_only_scalars_are_read(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("noise/scale", 4.0, 7)
        writer.add_text("noise/note", "text", 7)
        writer.add_histogram("noise/weights", np.arange(5.0), 7)
        writer.add_scalar("noise/lr", math.inf, 7, new_style=True)
    log = read_log(tmp_path)
    assert {key: column.tolist() for key, column in log.columns.items()} == {
        "noise/scale": [4.0],
        "noise/lr": [math.inf],
    }


def test_figures_of_one_step_on_several_rows_are_one(tmp_path: Path) -> None:
    rows = [{"step": 5, "noise/scale": 1.0}, {"step": 5, "noise/lr": 0.1}, {"step": 5, "noise/scale": 3.0}]
    log = read_log(as_csv(rows, tmp_path / "log.csv"))
    assert log.steps.tolist() == [5]
    assert (log.last("noise/scale"), log.last("noise/lr")) == (3.0, 0.1)


@pytest.mark.parametrize("name", ["step", "global_step", "trainer/global_step", "train/global_step", "_step"])
def test_the_loggers_step_serves_where_the_monitors_is_absent(name: str, tmp_path: Path) -> None:
    log = read_log(as_json_lines([{name: 7, "noise/scale": 1.0}], tmp_path / "log.jsonl"))
    assert log.steps.tolist() == [7]


def test_figures_without_any_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"figures but no step: log noise/step"):
        read_log(as_json_lines([{"noise/scale": 1.0}], tmp_path / "log.jsonl"))


# ---------------------------------------------------------------------- names


def test_another_prefix_is_named(tmp_path: Path) -> None:
    path = as_json_lines([{"step": 1, "gns/scale": 4.0, "gns/scale_low": 3.0}], tmp_path / "log.jsonl")
    with pytest.raises(NoFiguresError, match=r"it has step, gns/scale, gns/scale_low\."):
        read_log(path)
    assert read_log(path, prefix="gns/").last("noise/scale") == 4.0


def test_two_monitors_are_told_apart(tmp_path: Path) -> None:
    rows = [{"step": 1, "critic/noise/scale": 4.0, "actor/noise/scale": 5.0}]
    path = as_json_lines(rows, tmp_path / "log.jsonl")
    with pytest.raises(DataError, match=r"several monitors: name one, prefix=critic/noise/ or actor/noise/"):
        read_log(path)
    assert read_log(path, prefix="actor/noise/").last("noise/scale") == 5.0


def test_a_name_that_only_ends_alike_is_no_figure(tmp_path: Path) -> None:
    path = as_json_lines([{"step": 1, "image_noise/scale": 4.0}], tmp_path / "log.jsonl")
    with pytest.raises(NoFiguresError):
        read_log(path)


# ---------------------------------------------------------------------- infinity


@pytest.mark.parametrize("written", ["Infinity", '"Infinity"', '"inf"', "null", "1e999"])
def test_json_has_many_words_for_an_open_end(written: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1, "noise/scale_low": 2.0, "noise/scale_high": {written}, "noise/scale": null}}\n')
    log = read_log(path)
    assert log.columns["noise/scale_high"].tolist() == [math.inf]
    assert "noise/scale" not in log.columns


def test_a_null_beside_nulls_is_no_figure(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"step": 1, "noise/scale_low": None, "noise/scale_high": None}, {"step": 2, "noise/scale": 3.0}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert read_log(path).steps.tolist() == [2]


# ---------------------------------------------------------------------- a log that is being written


@pytest.mark.parametrize("kind", ["csv", "json lines", "tensorboard", "wandb"])
def test_a_log_cut_anywhere_is_read_up_to_there(kind: str, tmp_path: Path) -> None:
    rows = reports(range(100, 800, 100))
    path = WRITERS[kind](rows, tmp_path / "log")
    whole = read_log(path)
    file = whole.path if whole.path.is_file() else next(whole.path.iterdir())
    content = file.read_bytes()
    seen = set()
    for length in range(0, len(content), 97):
        file.write_bytes(content[:length])
        try:
            log = read_log(path)
        except NoFiguresError:
            seen.add(0)
            continue
        seen.add(len(log.steps))
        assert log.steps.tolist() == whole.steps.tolist()[: len(log.steps)]
        for key, column in log.columns.items():
            there = ~np.isnan(column)
            if kind != "tensorboard":  # where each figure is an event of its own
                assert there.all()
            np.testing.assert_array_equal(column[there], whole.columns[key][: len(column)][there])
    assert seen >= set(range(7))


def test_a_wandb_run_over_many_blocks_is_read_whole(tmp_path: Path) -> None:
    rows = reports(range(1, 301))
    path = as_wandb(rows, tmp_path)
    [file] = path.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 4 * 32 * 1024
    for named in (path, file.parent, file):
        log = read_log(named)
        assert log.steps.tolist() == list(range(1, 301))
        assert log.columns["noise/scale"].tolist() == [row["noise/scale"] for row in rows]


# ---------------------------------------------------------------------- what cannot be read


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"no such log: .*absent\.csv"):
        read_log(tmp_path / "absent.csv")


def test_a_log_without_figures_says_what_it_has(tmp_path: Path) -> None:
    path = as_csv([{f"metric_{index}": 1.0 for index in range(15)}], tmp_path / "log.csv")
    with pytest.raises(NoFiguresError, match=r"it has metric_0, .*, metric_11 and 3 more\. Log what Monitor\.step"):
        read_log(path)
    path.write_text("")
    with pytest.raises(NoFiguresError, match=r"it has nothing yet"):
        read_log(path)
    as_csv([{"step": 1.0, "noise/scale": math.nan}], path)
    with pytest.raises(NoFiguresError, match=r"yet, only names"):
        read_log(path)


def test_a_directory_has_one_log_or_names_them(tmp_path: Path) -> None:
    with pytest.raises(NoFiguresError, match=r"no log in .*; a log is CSV with a header"):
        read_log(tmp_path)
    (tmp_path / "a").mkdir()
    as_csv(reports(), tmp_path / "a" / "metrics.csv")
    assert read_log(tmp_path).path == tmp_path / "a" / "metrics.csv"
    as_json_lines(reports(), tmp_path / "a" / "log.jsonl")
    with pytest.raises(DataError, match=r"2 logs in .*, name one, newest first: .*log\.jsonl.*metrics\.csv"):
        read_log(tmp_path)


def test_of_several_checkpoints_the_newest_counts(tmp_path: Path) -> None:
    for step in (900, 1000):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        state = {"log_history": [{"step": step, "noise/scale": float(step)}]}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    assert read_log(tmp_path).last("noise/scale") == 1000.0
    assert read_log(tmp_path / "checkpoint-900").last("noise/scale") == 900.0


def test_a_history_alone_is_a_log(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text(json.dumps([{"step": 3, "noise/scale": 4.0}, {"loss": 1.0}]))
    assert read_log(path).last("noise/scale") == 4.0


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"\x89PNG\r\n\xff\xfe\x00", DataError, "no log that can be read"),
        (b'{"step": 1}\n{oops}\n{"step": 2}\n', CorruptFileError, r"line 2 of .* is not JSON"),
        (b'{"step": 1}\n[1, 2]\n', DataError, r"line 2 of .* is list, not an object"),
        (b"[1, 2]", DataError, "neither a list of flat objects nor"),
    ],
)
def test_other_files_are_refused(content: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(error, match=message):
        read_log(tmp_path / "file")


def test_a_changed_byte_of_a_wandb_run_is_found(tmp_path: Path) -> None:
    path = as_wandb(reports(), tmp_path)
    [file] = path.glob("wandb/offline-run-*/*.wandb")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"damaged at byte \d+"):
        read_log(file)
    file.write_bytes(b"something else altogether")
    with pytest.raises(CorruptFileError, match="not a W&B run file"):
        read_log(file)


@pytest.mark.parametrize(
    ("kind", "module", "package"),
    [
        ("tensorboard", "tensorboard.backend.event_processing.event_file_loader", "tensorboard"),
        ("wandb", "wandb.proto.wandb_internal_pb2", "wandb"),
    ],
)
def test_an_absent_library_is_named(
    kind: str, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WRITERS[kind](reports(), tmp_path / "log")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FailedError, match=rf"needs {package}, which is not installed: pip install {package}"):
        read_log(path)
