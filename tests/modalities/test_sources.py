"""Data sources of other packages: registered by name, or given by their import path."""

import sys

import numpy as np
import pytest
from helpers.hostile import refusal

from aigc_jax.core.config import Data
from aigc_jax.data.raw_dataset import ColumnarExamples, RawDataset
from aigc_jax.modalities import dataset_builders, sources
from aigc_jax.modalities.in_memory import raw_dataset_from_python
from aigc_jax.modalities.registries import DATASET_BUILDERS, FIELD_READERS, READERS, FieldReader
from aigc_jax.modalities.sources import DATA_SOURCES

PACKAGE = '''
import numpy as np

def squares(argument, config):
    """Images of one shade each."""
    count = int(argument or 12)
    shade = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return {"image": np.tile(shade, (1, 2, 2, 1)), "label": np.arange(count) % 2}
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "own_pictures.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_pictures:squares"
    sys.modules.pop("own_pictures", None)
    DATA_SOURCES._items.pop("own_pictures:squares", None)


@pytest.mark.parametrize("argument, count", [("", 12), (":20", 20)])
def test_a_source_by_its_import_path(package, argument, count):
    data = sources.load_source(Data(source=f"{package}{argument}", validation_fraction=0.25))
    assert len(data.train) + len(data.validation) == count
    assert data.spec.shape == (2, 2, 1) and data.spec.class_names == ("0", "1")


def test_a_mixture_of_sources_of_another_package(package):
    data = sources.load_source(Data(source=f"mix:1*{package}:8,2*{package}:16"))
    assert len(data.train) + len(data.validation) == 24


def test_a_registered_source_and_reader(monkeypatch):
    monkeypatch.setitem(DATA_SOURCES._items, "words", lambda argument, _: [argument] * 30)
    data = sources.load_source(Data(source="words:some text", seq_len=8))
    assert data.texts["train"][0] == "some text"
    images = {"image": np.zeros((9, 2, 2), np.uint8)}
    as_raw = sources.raw_dataset_from_python
    monkeypatch.setitem(READERS._items, "black", lambda path, options: as_raw(images))
    assert sources.load_source(Data(source="black:anywhere")).spec.shape == (2, 2, 1)


@pytest.mark.parametrize(
    "source, words",
    [
        ("digit", ["digits"]),
        ("folde:pictures", ["folder"]),
        ("own.missing:name", ["own.missing", "cannot be imported"]),
        ("digits:8", ["digits:8"]),
        ("tfds:", ["tfds:NAME"]),
    ],
)
def test_an_unknown_source_is_named(source, words):
    message = refusal(sources.load_source, Data(source=source))
    assert [word for word in words if word not in message] == []


def test_a_field_and_a_kind_of_another_modality(monkeypatch):
    """A new kind of data is registered, not added to the library's own code."""
    read = lambda splits, _: RawDataset(  # noqa: E731
        {s: ColumnarExamples(tune=c["tune"]) for s, c in splits.items()}, kind="tune"
    )
    monkeypatch.setitem(FIELD_READERS._items, "tune", FieldReader(read))
    monkeypatch.setitem(DATASET_BUILDERS._items, "tune", lambda raw, *_: raw.splits["train"])
    assert dataset_builders.build_dataset(raw_dataset_from_python({"tune": [1, 2]}), Data())
    (one, _) = raw_dataset_from_python([{"tune": 1}, {"tune": 2}]).splits["train"]
    assert one() == {"tune": 1}
