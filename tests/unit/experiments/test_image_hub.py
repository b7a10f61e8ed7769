"""Image sets from the hub: asked where no directory is given, and not trusted either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from noisescape.errors import DataError, MissingSplitError
from noisescape.experiments.images import open_images
from tiny_images import TINY, made

pytestmark = pytest.mark.usefixtures("tiny_sets")


def from_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[Any, ...]]:
    """Let ``answer`` be what the hub gives, raise or call; the calls are returned."""
    import datasets

    calls = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        calls.append((*arguments, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def hub_data(rows: int = 60, columns: tuple[str, str] = ("img", "digit")) -> tuple[np.ndarray[Any, Any], Any]:
    """What `datasets.load_dataset` returns for the tiny set, and its pixels."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    pixels, table = made(TINY, "test", rows)
    features = Features({columns[0]: ImageFeature(), columns[1]: ClassLabel(num_classes=10)})
    pictures = [Image.fromarray(image[..., 0]) for image in pixels]
    content = {columns[0]: pictures, columns[1]: table["label"].to_pylist()}
    return pixels, Dataset.from_dict(content, features=features)


def test_the_hub_is_asked_where_no_directory_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, loaded = hub_data()
    calls = from_hub(monkeypatch, loaded)
    opened = open_images("tiny", "test")
    assert open_images("tiny", "test") is opened
    assert calls == [("someone/tiny", "small", {"split": "test"})]
    assert opened.labels.tolist() == list(loaded["digit"])
    assert np.array_equal(opened.pixels(torch.arange(60))[:, 0].numpy(), pixels[..., 0])
    assert opened.facts() == {
        "name": "tiny",
        "split": "test",
        "source": "hub:someone/tiny",
        "rows": 60,
        "complete": True,
        "fingerprint": loaded._fingerprint,
    }


def test_the_hub_shows_no_progress_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.utils import are_progress_bars_disabled

    seen = []

    def load_dataset(*_: Any, **__: Any) -> Any:
        seen.append(are_progress_bars_disabled())
        return hub_data()[1]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    open_images("tiny", "test")
    assert seen == [True]
    assert not are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            ConnectionError("Couldn't reach 'someone/tiny' on the Hub\nand more"),
            DataError,
            r"cannot load someone/tiny from the Hugging Face hub \(Couldn't reach .* on the Hub\); "
            r"give --data-dir or set NOISESCAPE_DATA to a directory with tiny/test.parquet",
        ),
        (ValueError('Unknown split "test". Should be one of [].'), MissingSplitError, "has no test split"),
        (ValueError("BuilderConfig 'small' not found"), DataError, r"cannot load .*'small' not found"),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, answer: Exception, kind: type[DataError], message: str
) -> None:
    from_hub(monkeypatch, answer)
    with pytest.raises(DataError, match=message) as caught:
        open_images("tiny", "test")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (59, ("img", "digit"), "hub:someone/tiny has 59 rows"),
        (60, ("img", "class"), "must have one column 'label'"),
    ],
)
def test_the_hub_is_not_trusted_either(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: tuple[str, str], message: str
) -> None:
    from_hub(monkeypatch, hub_data(rows, columns)[1])
    with pytest.raises(DataError, match=message):
        open_images("tiny", "test")
