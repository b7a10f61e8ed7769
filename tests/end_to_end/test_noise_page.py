"""The page of a training's log in a real browser, and the command that writes it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from browser import Opened
from cli_calls import Result, only_json, plain, the_error
from noise_logs import as_csv, as_json_lines, probed, reports
from noisescape.report.batch_dial import STOPS, dialled, written
from noisescape.report.monitor_page import write_noise_report
from noisescape.training import Monitor, read_log
from noisescape.training.batch_size import BatchSizeAdvice, Interval
from slowness import quick

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
SIZE = 64


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = reports(range(100, 1100, 100), groups=True)
    rows[-1] = probed(rows[-1])
    return as_csv(rows, tmp_path_factory.mktemp("log") / "metrics.csv")


@pytest.fixture(scope="module")
def page(log: Path) -> Path:
    return write_noise_report(read_log(log))


# ---------------------------------------------------------------------- in the browser


@pytest.mark.parametrize(
    ("width", "scheme"), quick([(390, "dark")], itertools.product([1280, 390], ["light", "dark"]))
)
def test_the_page_fits_fetches_nothing_and_has_no_faults(browser: Any, page: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, page, width=width, scheme=scheme)
    assert opened.overflow() == 0
    assert opened.complaints == []
    assert opened.fetched == [page.as_uri()]
    paper = opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in paper.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness < 150) == (scheme == "dark")
    pictures = opened.tab.locator("img").all()
    assert len(pictures) == 7
    for picture in pictures:
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 100
        assert len(picture.get_attribute("alt")) > 40


def expected(log: Path, target: int) -> dict[str, Interval]:
    """What the closed forms of the library say at a batch size."""
    found = read_log(log)
    advice = BatchSizeAdvice.from_log(found, target=target)
    rules = {name: BatchSizeAdvice.from_log(found, target=target, optimizer=name) for name in ("sgd", "adam")}
    sgd, adam, surge = (rule.factor for rule in (rules["sgd"].rules[0], *rules["adam"].rules))
    scale = advice.noise_scale
    return {
        "steps": advice.steps,
        "samples": advice.samples,
        "variance": Interval(found.last("noise/trace_covariance") / target),
        "relative": Interval(*(end / target for end in (scale.value, scale.low, scale.high))),
        "sgd": sgd,
        "adam": Interval(adam.value),
        "surge": surge,
        "surge-lr": Interval(found.last("noise/lr") * surge.value),
        "sgd-lr": Interval(found.last("noise/lr") * sgd.value),
        "adam-lr": Interval(found.last("noise/lr") * adam.value),
    }


def assert_shown(opened: Opened, log: Path, target: int) -> None:
    assert opened.text("size") == str(target)
    assert opened.slider.get_attribute("aria-valuetext") == f"batch size {target}"
    for name, figure in expected(log, target).items():
        assert opened.value(name) == pytest.approx(figure.value, rel=1e-12), name
        assert opened.text(name) == written(figure), name


def test_the_dial_turns_by_keyboard_to_what_the_library_says(browser: Any, page: Path, log: Path) -> None:
    opened = Opened(browser, page)
    assert "scripts, which are off" not in opened.tab.locator("main").inner_text()
    assert opened.tab.get_by_label("If the batch size were").count() == 1
    assert_shown(opened, log, 2 * SIZE)
    opened.slider.focus()
    for key, stop in (
        ("ArrowRight", STOPS + 1),
        ("ArrowRight", STOPS + 2),
        ("End", 7 * STOPS),
        ("Home", -6 * STOPS),
    ):
        opened.tab.keyboard.press(key)
        assert_shown(opened, log, dialled(SIZE, stop))
    assert dialled(SIZE, -6 * STOPS) == 1
    assert opened.complaints == []


@pytest.mark.slow
def test_the_dial_turns_by_mouse_and_finger(browser: Any, page: Path, log: Path) -> None:
    for width in (1280, 390):
        opened = Opened(browser, page, width=width)
        opened.slider.scroll_into_view_if_needed()
        box = opened.slider.bounding_box()
        opened.tab.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
        opened.tab.mouse.down()
        opened.tab.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2, steps=4)
        opened.tab.mouse.up()
        stop = int(opened.slider.input_value())
        assert stop > 5 * STOPS
        assert_shown(opened, log, dialled(SIZE, stop))


def test_at_the_present_size_nothing_changes(browser: Any, page: Path) -> None:
    opened = Opened(browser, page)
    opened.slider.fill("0")
    assert opened.text("size") == str(SIZE)
    for name in ("steps", "samples", "sgd", "adam", "surge"):
        assert opened.value(name) == 1


@pytest.mark.parametrize("scale", quick([250.0], [math.nan, math.inf]))
def test_an_open_interval_stays_open_at_every_stop(browser: Any, scale: float, tmp_path: Path) -> None:
    report = reports([100])[0] | {"noise/scale": scale, "noise/scale_low": 90.0, "noise/scale_high": math.inf}
    if not math.isfinite(scale):
        report["noise/squared_gradient_norm"] = -0.5
    log = as_json_lines([report], tmp_path / "log.jsonl")
    opened = Opened(browser, write_noise_report(read_log(log)))
    verdict = opened.tab.locator(".verdict").first.inner_text()
    assert verdict == {250.0: "250: not told from infinity", math.inf: "∞: not told from infinity"}.get(
        scale, "undetermined: not told from infinity"
    )
    for stop in (STOPS, 3 * STOPS, -STOPS):
        opened.slider.fill(str(stop))
        target = dialled(SIZE, stop)
        for name, figure in expected(log, target).items():
            assert opened.text(name) == written(figure), name
    assert opened.text("relative").endswith("to ∞]")
    assert ("undetermined" in opened.text("steps")) == math.isnan(scale)
    assert opened.complaints == []


def test_a_hostile_log_is_shown_and_not_run(browser: Any, tmp_path: Path) -> None:
    group = f"noise/group/{HOSTILE} $\\frac _x\x1b[2J"
    report = reports([100])[0] | {
        f"{group}/scale": 4.0,
        f"{group}/scale_low": 3.0,
        f"{group}/scale_high": 9.0,
        "noise/group/$a_b/scale": 5.0,
    }
    log = as_json_lines([report], tmp_path / "<img src=x onerror=alert(1)>.jsonl")
    page = write_noise_report(read_log(log))
    opened = Opened(browser, page)
    opened.slider.fill("8")
    assert opened.tab.evaluate("window.hacked") is None
    assert (
        opened.tab.get_by_role("heading", level=1).inner_text()
        == "Gradient noise in <img src=x onerror=alert(1)>.jsonl"
    )
    assert "<script>window" in opened.tab.locator("table").inner_text()
    assert "\x1b" not in opened.tab.content()
    assert opened.complaints == []
    assert opened.fetched == [page.as_uri()]
    # and were something to slip through, the page would still run no other script than its own
    opened.tab.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'hacked = 1'}))"
    )
    assert opened.tab.evaluate("window.hacked") is None
    assert "Content Security Policy" in opened.complaints[0]


def test_without_scripts_the_figures_at_twice_the_batch_stand(browser: Any, page: Path, log: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    for name, figure in expected(log, 2 * SIZE).items():
        assert tab.locator(f'output[data-name="{name}"]').inner_text() == written(figure)
    assert tab.get_by_text("The dial needs scripts, which are off").is_visible()
    context.close()


@pytest.mark.slow
def test_printed_it_is_dark_on_white_even_from_a_dark_screen(browser: Any, page: Path) -> None:
    opened = Opened(browser, page, scheme="dark")
    opened.tab.emulate_media(media="print", color_scheme="dark")
    assert opened.tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    colours = opened.tab.evaluate(
        "[...document.querySelectorAll('.verdict')].map(verdict => getComputedStyle(verdict).color)"
    )
    assert "rgb(127, 209, 151)" not in colours, "the light green of dark screens"
    assert opened.tab.pdf()[:5] == b"%PDF-"


def test_what_a_real_monitor_reports_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    groups = [{"params": model[0].parameters(), "name": "first"}, {"params": model[2].parameters(), "name": "last"}]
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    monitor = Monitor(model, optimizer, every=1)
    rows = []
    for _ in range(12):
        for _ in range(4):
            inputs = torch.randn(8, 5)
            (torch.nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        if report := monitor.step():
            rows.append(report)
    assert len(rows) > 3
    log = read_log(as_csv(rows, tmp_path / "log.csv"))
    for key, value in rows[-1].items():
        assert log.columns[key][-1] == value
    assert log.groups == ["first", "last"]
    html = write_noise_report(log).read_text(encoding="utf-8")
    for told in ("How noisy is the gradient?", "And as Adam sees it?", "B = 32 is ", "noise scale of group first"):
        assert told in html
    assert "This log cannot say" not in html
    titles = {"Noise scale in Adam&#39;s metric.", "Noise scale of each parameter group.", "Squared gradient norm."}
    assert all(title in html for title in titles)


# ---------------------------------------------------------------------- the command


def test_the_page_is_written_beside_the_log_or_where_asked(call: Callable[..., Result], tmp_path: Path) -> None:
    as_csv(reports(), tmp_path / "metrics.csv")
    found = only_json(call("report", "metrics.csv", "--json"))
    assert found["report"] == "noise-report.html"
    assert (found["step"], found["reports"], found["noise/scale"]) == (300, 3, reports()[-1]["noise/scale"])
    told = plain(call("report", "metrics.csv", "--out", "page.html"))
    assert "noise scale" in told
    assert told.endswith("report: page.html")
    quiet = plain(call("report", "metrics.csv", "--out", "page.html", "--quiet"))
    assert quiet == "report: page.html"
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "noise-report.html").read_bytes()


def test_a_log_that_cannot_say_more_has_a_page_all_the_same(tmp_path: Path) -> None:
    log = as_json_lines([{"noise/step": 5, "noise/lr": 0.1}], tmp_path / "log.jsonl")
    html = write_noise_report(read_log(log)).read_text(encoding="utf-8")
    assert "This log cannot say: " in html
    assert "dial" not in html.split("</style>")[1]


def test_what_is_neither_run_nor_log_is_named(call: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert the_error(call("report", "empty")) == (
        "error: empty is not a run's directory: it holds no run.json, nor a training's log"
    )
    assert "no log that can be read" not in the_error(call("report", "absent"))
    as_csv([{"loss": 1.0}], tmp_path / "plain.csv")
    assert "no figures noise/… in plain.csv; it has loss" in the_error(call("report", "plain.csv"))
    rows = [{"step": 1, "a/noise/scale": 4.0, "b/noise/scale": 5.0}]
    as_json_lines(rows, tmp_path / "two.jsonl")
    assert "several monitors" in the_error(call("report", "two.jsonl"))
    assert only_json(call("report", "two.jsonl", "--prefix", "b/noise/", "--json"))["noise/scale"] == 5.0
