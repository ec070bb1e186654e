"""Several data sets in one run: their shares, their order, and going on."""

import json

import jax
import numpy as np
import pytest
from helpers.hostile import refusal

from aigc_jax.core.config import Data
from aigc_jax.data.fixed_batches import eval_batches
from aigc_jax.data.loader import DataLoader
from aigc_jax.data.mixture import MixedSource
from aigc_jax.modalities import sources
from aigc_jax.modalities.image.image_dataset import ImageSource
from aigc_jax.modalities.mixed_dataset import parse_mixture
from aigc_jax.modalities.text.token_windows import TokenWindows


def images(first, count):
    return ImageSource(lambda i: (np.full((2, 2, 1), i, np.uint8), i), range(first, first + count))


def mixed():
    """Parts whose labels tell them apart."""
    return MixedSource([images(0, 20), images(100, 7), images(200, 5)], [6, 3, 1])


def labels(batches):
    return np.concatenate([batch["label"] for batch in batches])


def take(iterator, count):
    return [iterator.next() for _ in range(count)]


def as_process(monkeypatch, process, processes):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: processes)


def test_a_batch_has_every_part_by_its_weight():
    got = labels(take(DataLoader(mixed(), 10, seed=0), 30)).reshape(30, 10)
    assert (np.stack([(got // 100 == part).sum(1) for part in range(3)], 1) == [6, 3, 1]).all()


def test_every_part_has_epochs_of_its_own():
    got = labels(take(DataLoader(mixed(), 10, seed=0), 20))
    for part, (first, count) in enumerate([(0, 20), (100, 7), (200, 5)]):
        mine = got[got // 100 == part]
        epoch = mine[: len(mine) // count * count].reshape(-1, count)
        assert len(epoch) > 3
        # Rows of a batch are rotated, so that an epoch's border lies in a batch.
        assert np.bincount(mine - first).max() - np.bincount(mine - first).min() <= 2


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(processes, monkeypatch):
    whole = take(DataLoader(mixed(), 8, seed=5), 9)
    shares = []
    for process in range(processes):
        as_process(monkeypatch, process, processes)
        shares.append(take(DataLoader(mixed(), 8, seed=5), 9))
    for k, batch in enumerate(whole):
        together = np.concatenate([share[k]["label"] for share in shares])
        assert together.tolist() == batch["label"].tolist()


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_seek_continues_within_a_mixture(taken):
    iterator = DataLoader(mixed(), 8, seed=3)
    take(iterator, taken)
    position = json.loads(json.dumps(iterator.position()))
    assert sum(position["mixture"]) == position["examples"] == 8 * taken
    expected = labels(take(iterator, 5))
    again = DataLoader(mixed(), 8, seed=3)
    again.seek(position)
    assert again.position() == position
    assert labels(take(again, 5)).tolist() == expected.tolist()


def test_the_examples_of_a_batch_are_those_of_the_mixture():
    iterator, source = DataLoader(mixed(), 8, seed=3), mixed()
    for number, batch in enumerate(take(iterator, 4)):
        found = [source[i]["label"] for i in iterator.example_ids(number)]
        assert found == batch["label"].tolist()


def test_held_out_examples_are_joined():
    batches = list(eval_batches(MixedSource([images(0, 3), images(10, 4)]), 5))
    assert labels(batches)[:7].tolist() == [0, 1, 2, 10, 11, 12, 13]


def test_windows_of_text_are_mixed_too():
    source = MixedSource(
        [TokenWindows(np.arange(1, 62), 4), TokenWindows(np.arange(101, 130), 4)], [1, 1]
    )
    for batch in take(DataLoader(source, 6, seed=0), 9):
        first = batch["tokens"][:, :1]
        np.testing.assert_array_equal(batch["tokens"], first + np.arange(5))
        assert (first > 100).sum() == 3


@pytest.mark.parametrize(
    "source, parts",
    [
        ("mix:0.7*tfds:a,0.3*tfds:b/c:1.0.0", [(7, "tfds:a"), (3, "tfds:b/c:1.0.0")]),
        ("mix:2*text:/x,y/*.txt,.5*digits", [(4, "text:/x,y/*.txt"), (1, "digits")]),
        ("mix:3*digits", [(1, "digits")]),
    ],
)
def test_a_mixture_is_written_as_weights_and_sources(source, parts):
    assert parse_mixture(source) == parts


@pytest.mark.parametrize(
    "source",
    ["mix:", "mix:digits", "mix:0.5*digits,", "mix:-1*digits", "mix:0*digits,1*digits",
     "mix:1*mix:1*digits", "mix:x,1*digits", "mix:1e3*digits", "mix:1.0000000001*digits,1*digits"],
)  # fmt: skip
def test_invalid_mixture_is_rejected(source):
    message = refusal(sources.load_source, Data(source=source))
    assert "mix" in message or "weight" in message or "digits," in message


def test_data_sets_are_loaded_as_a_mixture(tmp_path):
    data = sources.load_source(Data(source="mix:3*digits,1*digits"))
    one = sources.load_source(Data(source="digits"))
    assert len(data.train) == 2 * len(one.train) and data.spec == one.spec
    assert len(data.validation) == 2 * len(one.validation)
    (tmp_path / "a.txt").write_text("A text of some length.\n" * 40)
    (tmp_path / "b.txt").write_text("Another one that is longer.\n" * 50)
    source = f"mix:1*text:{tmp_path}/a.txt,1*text:{tmp_path}/b.txt"
    for form in ("stream", "documents"):
        text = sources.load_source(Data(source=source, seq_len=16, format=form))
        batch = DataLoader(text.train, 8, seed=0).next()
        assert batch["tokens"].shape == (8, 17)
        assert len(text.texts["train"]) == sum("longer" in t or "length" in t
                                               for t in text.texts["train"])  # fmt: skip


def test_data_sets_that_differ_are_not_mixed(tmp_path):
    assert "shape" in refusal(sources.load_source, Data(source="mix:1*digits,1*stacked_digits"))
    assert "modality" in refusal(sources.load_source, Data(source="mix:1*digits,1*python_docs"))
    (tmp_path / "a.txt").write_text("A text of some length.\n" * 40)
    source = f"mix:1*python_docs,1*text:{tmp_path}/a.txt"
    message = refusal(sources.load_source, Data(source=source, tokenizer="char", seq_len=8))
    assert "vocabulary" in message and "file:FILE" in message
