"""Real image data sets, from the Hugging Face hub or from a directory of Parquet files.

A directory holds ``<name>/<split>.parquet`` in the layout of Hugging Face ``datasets``: a column ``image``,
``struct<bytes: binary, path: string>`` with an encoded image, and a column ``label``, ``int64``. A deliberate part
of a split is called ``<split>_prefix.parquet``. Schema, number of rows and all labels are checked on opening,
images when they are decoded. Rows are counted from 0.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from noisescape.errors import DataError, MissingSplitError, unknown

Split = Literal["train", "test"]

# what `datasets` stores for an image and for a label
COLUMNS = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}


@dataclass(frozen=True)
class ImageSet:
    """What is known of a data set before it is opened.

    Attributes:
        name: as given to `open_images`.
        hub_id: of its repository on the Hugging Face hub.
        hub_config: of the repository's configurations, the one to take.
        hub_columns: what image and label are called on the hub.
        channels: 1 for grey, 3 for RGB.
        size: height and width in pixels.
        train_rows: of the whole training split.
        test_rows: of the whole test split.
        classes: labels are 0 to classes − 1.
    """

    name: str
    hub_id: str
    hub_config: str | None
    hub_columns: tuple[str, str]
    channels: int
    size: int
    train_rows: int
    test_rows: int
    classes: int = 10

    def rows(self, split: Split) -> int:
        """Rows of a whole split."""
        return self.train_rows if split == "train" else self.test_rows

    @property
    def mode(self) -> str:
        """Pillow's name for its pixels."""
        return "L" if self.channels == 1 else "RGB"


IMAGE_SETS = {
    known.name: known
    for known in (
        ImageSet(
            name="fashion_mnist",
            hub_id="zalando-datasets/fashion_mnist",
            hub_config=None,
            hub_columns=("image", "label"),
            channels=1,
            size=28,
            train_rows=60_000,
            test_rows=10_000,
        ),
        ImageSet(
            name="cifar10",
            hub_id="uoft-cs/cifar10",
            hub_config=None,
            hub_columns=("img", "label"),
            channels=3,
            size=32,
            train_rows=50_000,
            test_rows=10_000,
        ),
        ImageSet(
            name="svhn",
            hub_id="ufldl-stanford/svhn",
            hub_config="cropped_digits",
            hub_columns=("image", "label"),
            channels=3,
            size=32,
            train_rows=73_257,
            test_rows=26_032,
        ),
    )
}


@dataclass(eq=False)
class LabelledImages:
    """An open split: every label, and the images on demand. Made by `open_images`, shared by all who open it.

    Attributes:
        about: the data set.
        split: ``"train"`` or ``"test"``.
        source: path of the file, or ``hub:`` and the repository.
        complete: false for a part of the split.
        identity: SHA-256 of the file, or the fingerprint of what came from the hub.
        labels: int64, (rows,).
        encoded: the images, a `datasets.Dataset` that leaves them as they are stored.
    """

    about: ImageSet
    split: Split
    source: str
    complete: bool
    identity: dict[str, str]
    labels: Tensor
    encoded: Any = field(repr=False)

    def __post_init__(self) -> None:
        about = self.about
        # pages that are never written take no memory, so this costs what the decoded rows cost
        self._pixels = torch.empty((self.count, about.channels, about.size, about.size), dtype=torch.uint8)
        self._decoded = torch.zeros(self.count, dtype=torch.bool)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def facts(self) -> dict[str, Any]:
        """What a run stores of it: the file without the directory that this machine keeps its data in."""
        return {
            "name": self.about.name,
            "split": self.split,
            "source": self.source if self.source.startswith("hub:") else "/".join(Path(self.source).parts[-2:]),
            "rows": self.count,
            "complete": self.complete,
            **self.identity,
        }

    def pixels(self, rows: Tensor) -> Tensor:
        """The images of these rows, uint8, (n, channels, height, width). Each is decoded once and then kept.

        Raises:
            DataError: an image cannot be decoded, or has another size or mode; the message names its row.
            IndexError: no such row.
        """
        new = rows[~self._decoded[rows]].unique().tolist()
        if new:
            for row, stored in zip(new, self.encoded[new]["image"], strict=True):
                self._pixels[row] = torch.from_numpy(self._decode(row, stored))
                self._decoded[row] = True
        return self._pixels[rows]

    def _decode(self, row: int, stored: dict[str, Any]) -> np.ndarray[Any, Any]:
        from PIL import Image, ImageOps

        about = self.about
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(stored["bytes"]))  # reads no more than its header
            fits = image.mode == about.mode and image.size == (about.size, about.size)
            if fits:
                Image.open(io.BytesIO(stored["bytes"])).verify()  # a PNG's checksums, which loading leaves out
                image.load()
        except Exception as error:  # there is no common class for what Pillow raises on a broken image
            reason = re.sub(r" ?<.*>", "", _short(error))  # an object's address says nothing
            raise DataError(
                f"{self.source}: the image of row {row} cannot be decoded ({reason}); get the data set anew"
            ) from error
        if not fits:
            raise DataError(
                f"{self.source}: the image of row {row} is {image.width} × {image.height} {image.mode}, those of "
                f"{about.name} are {about.size} × {about.size} {about.mode}; get the data set anew"
            )
        upright = ImageOps.exif_transpose(image)
        return np.array(upright).reshape(about.size, about.size, about.channels).transpose(2, 0, 1)


def open_images(name: str, split: Split, data_dir: str | Path | None = None) -> LabelledImages:
    """Open one split of a data set and check everything but its images. A process reads it only once.

    Args:
        name: a key of `IMAGE_SETS`.
        split: ``"train"`` or ``"test"``.
        data_dir: a directory with ``<name>/<split>.parquet``; by default the environment variable
            ``NOISESCAPE_DATA``, or without that the Hugging Face hub, whose client keeps a copy.

    Raises:
        MissingSplitError: the data set has no such split there.
        DataError: whatever else is wrong with it.
    """
    if name not in IMAGE_SETS:
        raise unknown("data set", name, IMAGE_SETS, DataError)
    if split not in get_args(Split):
        raise DataError(f"split must be 'train' or 'test', not '{split}'")
    about = IMAGE_SETS[name]
    directory = data_dir or os.environ.get("NOISESCAPE_DATA")
    if not directory:
        return _from_hub(about, split)
    try:
        path, complete = _find(about, split, Path(directory).expanduser().absolute())
        stat = path.stat()
        # size and time are part of the cache's key, so a file replaced meanwhile is read again
        return _from_file(about, split, path, complete, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or directory} ({error.strerror or _short(error)}); "
            "make it readable or give another --data-dir"
        ) from error


def _find(about: ImageSet, split: Split, directory: Path) -> tuple[Path, bool]:
    """The file of a split in a data directory, and whether it is the whole split."""
    folder = directory / about.name
    if not directory.is_dir():
        raise DataError(f"there is no directory {directory}; give another --data-dir or set NOISESCAPE_DATA")
    if not folder.is_dir():
        held = ", ".join(known for known in IMAGE_SETS if (directory / known).is_dir()) or "no data set known here"
        raise DataError(
            f"{directory} does not hold {about.name} but {held}; put {about.name}/{split}.parquet into it "
            "or give another --data-dir"
        )
    for path, complete in ((folder / f"{split}.parquet", True), (folder / f"{split}_prefix.parquet", False)):
        if path.exists():
            if not (path.is_file() or path.is_dir()):
                raise DataError(f"{path} is no regular file; put the file itself there or give another --data-dir")
            return path, complete
    held = ", ".join(sorted(path.name for path in folder.glob("*.parquet"))) or "no Parquet file"
    raise MissingSplitError(
        f"{folder} has no {split} split but {held}; put {split}.parquet or {split}_prefix.parquet there "
        "or give another --data-dir"
    )


@functools.cache
def _from_file(
    about: ImageSet, split: Split, path: Path, complete: bool, size: int, changed: int
) -> LabelledImages:
    content = path.read_bytes()
    if not content:
        raise DataError(f"{path} is empty; get the file anew")
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        _check_columns(str(path), file.schema_arrow)
        table = file.read(columns=list(COLUMNS))
        table.validate(full=True)  # or text that is not UTF-8 would fail only when its row is used
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(
            f"{path} is truncated, damaged or not a Parquet file ({_short(error)}); get the file anew"
        ) from error
    rows, whole = len(table), about.rows(split)
    if complete and rows != whole:
        raise DataError(
            f"{path} has {rows} rows, the {split} split of {about.name} has {whole}; get the whole file, "
            f"or call a deliberate part {split}_prefix.parquet"
        )
    if not complete and not 0 < rows < whole:
        raise DataError(
            f"{path} has {rows} rows, a part of the {split} split of {about.name} has 1 to {whole - 1}; "
            f"get the file anew, or call the whole split {split}.parquet"
        )
    identity = {"sha256": hashlib.sha256(content).hexdigest()}
    return _labelled(about, split, str(path), complete, identity, table)


@functools.cache
def _from_hub(about: ImageSet, split: Split) -> LabelledImages:
    import datasets

    mend = f"give --data-dir or set NOISESCAPE_DATA to a directory with {about.name}/{split}.parquet"
    try:
        with _progress_bars_only_in_terminals():
            loaded = datasets.load_dataset(about.hub_id, about.hub_config, split=split)
    except Exception as error:  # network, cache, disk: classes of many packages
        if isinstance(error, ValueError) and "Unknown split" in str(error):
            raise MissingSplitError(
                f"{about.hub_id} on the Hugging Face hub has no {split} split; {mend}"
            ) from error
        raise DataError(
            f"cannot load {about.hub_id} from the Hugging Face hub ({_short(error)}); {mend}"
        ) from error
    source = f"hub:{about.hub_id}"
    names = dict(zip(about.hub_columns, COLUMNS, strict=True))
    table = loaded.with_format("arrow")[:]
    table = table.rename_columns([names.get(column, column) for column in table.column_names])
    _check_columns(source, table.schema)
    if len(table) != about.rows(split):
        raise DataError(
            f"{source} has {len(table)} rows, the {split} split of {about.name} has {about.rows(split)}; {mend}"
        )
    return _labelled(about, split, source, True, {"fingerprint": loaded._fingerprint}, table.select(list(COLUMNS)))  # noqa: SLF001


@contextmanager
def _progress_bars_only_in_terminals() -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _check_columns(source: str, schema: Any) -> None:
    for name, expected in COLUMNS.items():
        if schema.names.count(name) != 1:
            raise DataError(
                f"{source} must have one column '{name}', its columns are {', '.join(schema.names)}; "
                "get the data set anew or rename its columns"
            )
        found = schema.field(name).type
        if found != expected:
            raise DataError(
                f"{source}: column '{name}' is {found}, not {expected}; "
                "write it with Hugging Face datasets or get the data set anew"
            )


def _labelled(
    about: ImageSet, split: Split, source: str, complete: bool, identity: dict[str, str], table: Any
) -> LabelledImages:
    """Check labels and the presence of images in every row, and hand the table to `datasets`."""
    from datasets import Dataset, DatasetInfo, Features, Image, Value  # a second to import, and only this needs it

    for what, column in (("label", table["label"]), ("image", pc.struct_field(table["image"], "bytes"))):
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise DataError(f"{source}: row {row} has no {what}; get the data set anew")
    labels = table["label"].to_numpy().copy()  # Arrow's memory is read-only
    (wrong,) = np.nonzero((labels < 0) | (labels >= about.classes))
    if len(wrong):
        raise DataError(
            f"{source}: row {wrong[0]} has label {labels[wrong[0]]}, those of {about.name} are "
            f"0 to {about.classes - 1}; get the data set anew"
        )
    features = Features(image=Image(decode=False), label=Value("int64"))
    # without its metadata: a class list that does not fit is no reason to fail; a fingerprint saves computing one
    encoded = Dataset(
        table.replace_schema_metadata(None),
        info=DatasetInfo(features=features),
        fingerprint=next(iter(identity.values()))[:16],
    )
    return LabelledImages(about, split, source, complete, identity, torch.from_numpy(labels), encoded)


def _short(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
