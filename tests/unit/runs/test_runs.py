import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pytest
import torch

from noisescape.runs.places import default_run_path
from noisescape.runs.run import Run, atomic_path, tidy
from slowness import quick


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", experiment="toy", config={"lr": 0.1}, seed=3)


def names(directory):
    return sorted(path.name for path in directory.rglob("*") if path.is_file() and path.name != ".lock")


class TestAtomicPath:
    @pytest.mark.parametrize("old", [None, "old"])
    @pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_leaves_what_was_there(self, tmp_path, old, failure):
        target = tmp_path / "file.txt"
        if old is not None:
            target.write_text(old)

        def write_half():
            with atomic_path(target) as temporary:
                temporary.write_text("half")
                raise failure

        with pytest.raises(failure):
            write_half()
        assert names(tmp_path) == ([] if old is None else ["file.txt"])
        assert old is None or target.read_text() == old

    def test_the_old_file_stands_until_the_block_ends(self, tmp_path):
        target = tmp_path / "file.txt"
        target.write_text("old")
        with atomic_path(target) as temporary:
            temporary.write_text("new")
            assert target.read_text() == "old"
        assert target.read_text() == "new"
        assert names(tmp_path) == ["file.txt"]

    def test_temporary_is_a_hidden_neighbour_with_the_same_suffix_and_never_the_same_twice(self, tmp_path):
        target = tmp_path / "file.parquet"
        with atomic_path(target) as one, atomic_path(target) as two:
            assert one != two
            assert one.parent == tmp_path
            assert one.name.startswith(".")
            assert one.suffix == ".parquet"
            one.touch()
            two.touch()

    def test_a_block_that_writes_nothing_is_an_error(self, tmp_path):
        with (
            pytest.raises(FileNotFoundError, match="nothing was written"),
            atomic_path(tmp_path / "file.txt"),
        ):
            pass

    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
    @pytest.mark.parametrize("old", quick(["old"], [None]))
    def test_a_kill_leaves_what_was_there(self, tmp_path, old):
        target = tmp_path / "file.txt"
        if old is not None:
            target.write_text(old)
        script = (
            "import os, signal, sys, pathlib\n"
            "from noisescape.runs.run import atomic_path\n"
            "with atomic_path(pathlib.Path(sys.argv[1])) as temporary:\n"
            "    with temporary.open('w') as file:\n"
            "        file.write('half')\n"
            "        file.flush()\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        [leftover] = [path for path in tmp_path.iterdir() if path.name != "file.txt"]
        assert leftover.read_text() == "half"  # the kill did fall in the middle of the write
        assert target.exists() == (old is not None)
        assert old is None or target.read_text() == old


class TestCreateAndOpen:
    def test_run_json_says_what_made_the_run(self, run):
        info = Run.open(run.path).info
        assert (info["experiment"], info["config"], info["seed"]) == ("toy", {"lr": 0.1}, 3)
        assert info["versions"].keys() == {"noisescape", "noisescape source", "python", "torch", "numpy", "scipy"}
        assert info["versions"]["torch"] == torch.__version__
        assert info["threads"] == torch.get_num_threads()
        assert info["started"].endswith("+00:00")
        assert info["platform"]

    def test_summary_marks_the_run_complete(self, run):
        assert not run.complete
        with pytest.raises(FileNotFoundError, match="did not finish"):
            run.summary()
        run.write_summary({"rate": 0.5})
        assert run.complete
        assert run.summary() == {"rate": 0.5}

    def test_an_empty_directory_will_do(self, tmp_path):
        assert Run.create(tmp_path, experiment="toy", config={}, seed=0).path == tmp_path

    def test_an_occupied_directory_is_refused_and_untouched(self, run):
        before = (run.path / "run.json").read_bytes()
        with pytest.raises(FileExistsError, match="not empty: choose another directory"):
            Run.create(run.path, experiment="other", config={}, seed=0)
        assert (run.path / "run.json").read_bytes() == before

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError, match="is a file"):
            Run.create(tmp_path / "file", experiment="toy", config={}, seed=0)

    def test_a_place_where_no_directory_can_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match=r"cannot write a run to .*: choose a directory"):
            Run.create(tmp_path / "file" / "run", experiment="toy", config={}, seed=0)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is unwritable to root")
    @pytest.mark.parametrize("below", ["", "run"])
    def test_an_unwritable_place(self, tmp_path, below):
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o555)
        with pytest.raises(PermissionError, match="cannot write a run to"):
            Run.create(locked / below, experiment="toy", config={}, seed=0)

    def test_a_bad_configuration_leaves_no_directory(self, tmp_path):
        with pytest.raises(TypeError, match=re.escape("value['config']['model'] is a object")):
            Run.create(tmp_path / "run", experiment="toy", config={"model": object()}, seed=0)
        assert not (tmp_path / "run").exists()

    def test_open_names_what_is_wrong(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such directory"):
            Run.open(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="not a run's directory"):
            Run.open(tmp_path)
        for text, message in (("{", "cannot be read"), ("[]", "not an object"), ("{}", "no experiment")):
            (tmp_path / "run.json").write_text(text)
            with pytest.raises(ValueError, match=message):
                Run.open(tmp_path)

    def test_default_paths_do_not_collide(self, tmp_path):
        first = default_run_path("toy-2d", tmp_path)
        assert re.fullmatch(r"toy-2d-\d{8}-\d{6}-\d{6}", first.name)
        taken = set()
        for _ in range(20):
            path = default_run_path("toy-2d", tmp_path)
            assert path not in taken
            path.mkdir()
            taken.add(path)


@dataclass(frozen=True)
class Figures:
    value: float
    stderr: float


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def test_json_is_strict_and_holds_tensors_scalars_and_dataclasses(run):
    run.write_summary(
        {
            "nan": math.nan,
            "nested": [{"inf": (math.inf, -math.inf, 1.5)}],
            "tensor": torch.tensor([[1.0, math.nan]]),
            "scalar": torch.tensor(2, dtype=torch.int64),
            "numpy": np.float32(0.5),
            "bool": np.bool_(True),
            "array": np.array([1, 2]),
            "estimate": Figures(1.0, math.inf),
            "path": Path("a") / "b",
            4: "key",
        }
    )
    text = (run.path / "summary.json").read_text()
    found = json.loads(text, parse_constant=refuse_constant)
    assert list(found)[-1] == "sha256"
    expected = {
        "nan": None,
        "nested": [{"inf": [None, None, 1.5]}],
        "tensor": [[1.0, None]],
        "scalar": 2,
        "numpy": 0.5,
        "bool": True,
        "array": [1, 2],
        "estimate": {"value": 1.0, "stderr": None},
        "path": str(Path("a") / "b"),
        "4": "key",
    }
    assert run.summary() == expected
    assert found == {**expected, "sha256": found["sha256"]}


class TestMetrics:
    def test_round_trip_keeps_values_types_and_missing_ones(self, run):
        table = tidy([{"step": 0, "name": "gd", "loss": math.nan, "ok": True, "late": None}] * 2)
        run.write_metrics(table)
        back = run.metrics()
        assert back.schema == table.schema
        assert back["step"].to_pylist() == [0, 0]
        assert all(math.isnan(value) for value in back["loss"].to_pylist())
        assert back["late"].null_count == 2

    def test_a_directory_that_looks_like_a_partition_adds_no_column(self, tmp_path):
        run = Run.create(tmp_path / "lr=0.1", experiment="toy", config={}, seed=0)
        run.write_metrics(tidy([{"step": 1}]))
        assert run.metrics().column_names == ["step"]

    def test_no_metrics_is_a_clear_error(self, run):
        with pytest.raises(FileNotFoundError, match="has no metrics"):
            run.metrics()

    def test_a_failed_write_keeps_the_old_table(self, run):
        run.write_metrics(tidy([{"step": 1}]))
        with pytest.raises((TypeError, AttributeError)):
            run.write_metrics("not a table")
        assert run.metrics().to_pydict() == {"step": [1]}
        assert names(run.path) == ["metrics.parquet", "run.json"]


class TestTidy:
    @pytest.mark.parametrize(
        ("values", "arrow_type"),
        [
            ([1, 2], pa.int64()),
            ([1, 2.5], pa.float64()),
            ([2.5, 1, None], pa.float64()),
            ([None, 1], pa.int64()),
            ([None, None], pa.float64()),
            ([True, False], pa.bool_()),
            (["a", None], pa.string()),
            ([torch.tensor(1.0), np.float32(2), np.array([3.0])], pa.float64()),
        ],
    )
    def test_a_column_has_one_type_whatever_the_order(self, values, arrow_type):
        for ordered in (values, values[::-1]):
            column = tidy({"x": value} for value in ordered)["x"]
            assert column.type == arrow_type
            assert column.to_pylist() == ordered

    @pytest.mark.parametrize("values", [[1, "a"], [True, 1], [1.0, [2.0]], [torch.ones(2), torch.ones(2)]])
    def test_mixed_or_composite_values_are_refused_by_name(self, values):
        with pytest.raises(TypeError, match="column 'x' holds"):
            tidy({"x": value} for value in values)

    def test_differing_keys_are_named(self):
        with pytest.raises(ValueError, match=r"row 1 and row 0 differ in the keys \['b', 'c'\]"):
            tidy([{"a": 1, "b": 2}, {"a": 1, "c": 2}])

    def test_order_of_keys_is_free(self):
        assert tidy([{"a": 1, "b": 2}, {"b": 4, "a": 3}]).to_pydict() == {"a": [1, 3], "b": [2, 4]}

    def test_no_rows(self, run):
        run.write_metrics(tidy([]))
        assert run.metrics().num_rows == 0


class TestTensors:
    def test_round_trip(self, run):
        base = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).requires_grad_()
        tensors = {"theta": base, "transposed": base.T, "shared": base, "count": torch.tensor(3)}
        run.write_tensors("minimum", tensors)
        back = run.tensors("minimum")
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert back[name].dtype == tensor.dtype
            assert torch.equal(back[name], tensor.detach())

    def test_a_missing_checkpoint_names_those_there_are(self, run):
        run.write_tensors("minimum", {"x": torch.ones(1)})
        with pytest.raises(FileNotFoundError, match=r"minimun.safetensors: there are \['minimum'\]"):
            run.tensors("minimun")

    @pytest.mark.parametrize("name", ["", "../escape", "a/b", "a\\b", ".hidden"])
    def test_a_name_is_only_a_name(self, run, name):
        with pytest.raises(ValueError, match="cannot name a file"):
            run.write_tensors(name, {"x": torch.ones(1)})


class TestFigures:
    def make(self):
        figure, axes = plt.subplots()
        axes.plot([0, 1])
        return figure

    def test_png_and_svg_are_written_and_the_figure_closed(self, run):
        figure = self.make()
        svg = run.save_figure("loss", figure)
        assert svg == run.path / "figures" / "loss.svg"
        assert "<svg" in svg.read_text()
        assert svg.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert not plt.fignum_exists(figure.number)

    def test_same_figure_same_bytes(self, run):
        one = run.save_figure("loss", self.make()).read_bytes()
        assert run.save_figure("loss", self.make()).read_bytes() == one

    def test_if_one_format_fails_neither_appears_and_the_figure_is_closed(self, run, monkeypatch):
        figure = self.make()
        save = figure.savefig

        def fail_on_svg(path, **options):
            save(path, **options)
            if Path(path).suffix == ".svg":
                raise RuntimeError

        monkeypatch.setattr(figure, "savefig", fail_on_svg)
        with pytest.raises(RuntimeError):
            run.save_figure("loss", figure)
        assert names(run.path / "figures") == []
        assert not plt.fignum_exists(figure.number)


def test_report_is_utf8(run):
    assert run.write_report("<p>Tr(HΣ)</p>").read_bytes().decode("utf-8") == "<p>Tr(HΣ)</p>"
