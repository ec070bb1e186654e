"""Batches: every example once per epoch, a position to go on from, and a share per process."""

import json

import jax
import numpy as np
import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.data import shuffle as order_lib
from aigc_jax.data.fixed_batches import eval_batches
from aigc_jax.data.loader import DataLoader, local_size
from aigc_jax.data.raw_dataset import ColumnarExamples
from aigc_jax.data.shuffle import EpochShuffle
from aigc_jax.data.source import read_batch
from aigc_jax.modalities.image.image_dataset import ImageSource, InMemoryImages
from aigc_jax.modalities.text.token_windows import TokenWindows

STREAM = np.arange(1, 62, dtype=np.int32)  # distinct, so that a token tells its place


def images(count):
    """Images that all hold their own number, which is also their label."""
    return ImageSource(lambda i: (np.full((2, 2, 1), i, np.uint8), i), range(count))


def windows(seq_len=4, stride=None):
    return TokenWindows(STREAM, seq_len, stride)


class Rows:
    """A source that knows nothing of batches."""

    def __init__(self, source):
        self._source = source

    def __getitem__(self, index):
        return self._source[index]


SOURCES = {"images": lambda: images(10), "text": windows}


def take(iterator, count):
    return [iterator.next() for _ in range(count)]


def labels(batches):
    return np.concatenate([b["label"] for b in batches]).tolist()


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


def differ(a, b):
    return any((x[k] != y[k]).any() for x, y in zip(a, b, strict=True) for k in x)


def test_a_batch_is_stacked_examples():
    batch = DataLoader(images(10), 4, seed=0).next()
    assert batch["image"].shape == (4, 2, 2, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    assert batch["weight"].shape == (4,) and batch["weight"].dtype == np.float32
    assert (batch["weight"] == 1).all()
    assert (batch["image"][:, 0, 0, 0] == batch["label"]).all()


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 30])
def test_every_example_once_per_epoch(batch_size, threads):
    """Whether or not the batches fit into an epoch, or an epoch into a batch."""
    iterator = DataLoader(images(10), batch_size, seed=0, threads=threads)
    got = labels(take(iterator, -(-30 // batch_size)))
    for epoch in range(3):
        assert sorted(got[10 * epoch : 10 * (epoch + 1)]) == list(range(10))


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = []
    for seed in (0, 1):
        got = labels(take(DataLoader(images(10), 10, seed), 3))
        orders += [tuple(got[10 * epoch : 10 * (epoch + 1)]) for epoch in range(3)]
    assert len(set(orders)) == 6
    assert tuple(range(10)) not in orders


@pytest.mark.parametrize("small", [9, 10])
def test_every_place_of_the_order_has_its_example(small, monkeypatch):
    """Whether an epoch's order is held or each place is found alone."""
    monkeypatch.setattr(order_lib, "SMALL", small)
    order = EpochShuffle(10, seed=3)
    got = order(np.arange(30)).reshape(3, 10)
    assert (np.sort(got) == np.arange(10)).all()
    assert len(set(map(tuple, got.tolist()))) == 3
    assert order(np.array([25, 7])).tolist() == [got[2, 5], got[0, 7]]
    assert (EpochShuffle(10, seed=4)(np.arange(10)) != got[0]).any()


def test_a_batch_in_memory_is_its_examples_stacked():
    columns = ColumnarExamples(
        image=np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1), label=range(10, 20)
    )
    whole = {key: np.asarray(values) for key, values in columns.values.items()}
    indices = np.array([7, 2, 9])
    source = InMemoryImages(whole, indices)
    index_B = np.array([2, 0, 0])
    assert_same([source.batch(index_B)], [read_batch(Rows(source), index_B)])
    assert source.batch(index_B)["label"].tolist() == [19, 17, 17]
    unlabelled = InMemoryImages({"image": whole["image"]}, indices)
    assert_same([unlabelled.batch(index_B)], [read_batch(Rows(unlabelled), index_B)])


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_seed_gives_the_same_batches_with_any_number_of_threads(kind):
    first = take(DataLoader(SOURCES[kind](), 4, seed=7, threads=0), 9)
    for threads in (0, 1, 4):
        assert_same(first, take(DataLoader(SOURCES[kind](), 4, seed=7, threads=threads), 9))
    assert differ(first, take(DataLoader(SOURCES[kind](), 4, seed=8), 9))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 7])
@pytest.mark.parametrize("kind", SOURCES)
def test_seek_continues_with_exactly_the_next_batches(kind, taken, threads):
    """Also past the end of an epoch, and whatever was read ahead."""
    iterator = DataLoader(SOURCES[kind](), 4, seed=3, threads=threads)
    take(iterator, taken)
    position = json.loads(json.dumps(iterator.position()))
    expected = take(iterator, 6)
    again = DataLoader(SOURCES[kind](), 4, seed=3, threads=threads)
    again.seek(position)
    assert again.position() == position
    assert_same(take(again, 6), expected)
    assert again.position() == iterator.position()


def test_seek_also_goes_back():
    iterator = DataLoader(images(10), 4, seed=3)
    start = iterator.position()
    first = take(iterator, 5)
    iterator.seek(start)
    assert_same(take(iterator, 5), first)


def test_position_counts_the_examples_taken_and_is_plain_json():
    iterator = DataLoader(images(10), 4, seed=0)
    for count in range(4):
        position = iterator.position()
        assert position["examples"] == 4 * count
        assert json.loads(json.dumps(position)) == position
        iterator.next()


def test_training_windows_are_runs_of_the_stream_all_predicted():
    for batch in take(DataLoader(windows(), 5, seed=0), 9):
        assert batch["tokens"].shape == (5, 5) and batch["tokens"].dtype == np.int32
        assert batch["weight"].shape == (5, 4) and batch["weight"].dtype == np.float32
        assert (batch["weight"] == 1).all()
        np.testing.assert_array_equal(
            batch["tokens"], batch["tokens"][:, :1] + np.arange(5, dtype=np.int32)
        )
        assert batch["tokens"].min() >= STREAM[0] and batch["tokens"].max() <= STREAM[-1]


def test_fewer_windows_than_a_batch():
    source = TokenWindows(STREAM[:6], 5)
    assert len(source) == 1
    batch = DataLoader(source, 3, seed=0).next()
    assert batch["tokens"].tolist() == [STREAM[:6].tolist()] * 3


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 11, 64])
def test_eval_batches_cover_every_example_once(batch_size):
    batches = list(eval_batches(images(10), batch_size))
    assert all(b["image"].shape == (batch_size, 2, 2, 1) for b in batches)
    assert len(batches) == -(-10 // batch_size)
    weights = np.concatenate([b["weight"] for b in batches])
    assert weights.tolist() == [1] * 10 + [0] * (len(batches) * batch_size - 10)
    assert np.array(labels(batches))[weights > 0].tolist() == list(range(10))
    for batch in batches:
        assert batch["weight"].dtype == np.float32
        assert (batch["image"][:, 0, 0, 0] == batch["label"]).all()


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_eval_batches_of_text_predict_every_token_once(batch_size, stride):
    batches = list(eval_batches(windows(stride=stride), batch_size))
    targets = np.concatenate([b["tokens"][:, 1:][b["weight"] > 0] for b in batches])
    assert targets.tolist() == STREAM[1:].tolist()
    assert all(b["weight"].shape == (batch_size, 4) for b in batches)


@pytest.mark.parametrize("limit, count", [(1, 1), (3, 3), (4, 4), (9, 4), (0, 4)])
def test_eval_batches_stop_at_the_limit(limit, count):
    batches = list(eval_batches(images(10), 3, limit))
    assert_same(batches, list(eval_batches(images(10), 3))[:count])


def test_eval_batches_of_nothing():
    assert list(eval_batches(images(0), 3)) == []


def test_padding_does_not_change_the_source():
    shared = {"image": np.zeros((1, 1, 1), np.uint8), "weight": np.ones((), np.float32)}

    class OneExample:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return shared

    (batch,) = eval_batches(OneExample(), 3)
    assert batch["weight"].tolist() == [1, 0, 0]
    assert shared["weight"] == 1


# Several processes ---------------------------------------------------------------------------


def as_process(monkeypatch, process, processes):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: processes)


def together(shares):
    """The batches of which each process has its rows."""
    return [
        {k: np.concatenate([b[k] for b in rows]) for k in rows[0]}
        for rows in zip(*shares, strict=True)
    ]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("kind", SOURCES)
def test_processes_share_the_batches_of_one(kind, processes, monkeypatch):
    expected = take(DataLoader(SOURCES[kind](), 8, seed=5), 6)
    shares = []
    for p in range(processes):
        as_process(monkeypatch, p, processes)
        shares.append(take(DataLoader(SOURCES[kind](), 8, seed=5), 6))
    assert shares[0][0]["weight"].shape[0] == 8 // processes
    assert_same(together(shares), expected)


def test_resume_with_another_number_of_processes(monkeypatch):
    iterator = DataLoader(images(10), 8, seed=5)
    take(iterator, 3)
    position = iterator.position()
    expected = take(iterator, 4)
    shares = []
    for p in range(2):
        as_process(monkeypatch, p, 2)
        again = DataLoader(images(10), 8, seed=5)
        again.seek(position)
        shares.append(take(again, 4))
        assert again.position() == iterator.position()
    assert_same(together(shares), expected)


def test_local_work_is_not_shared(monkeypatch):
    expected = take(DataLoader(images(10), 8, seed=5), 3)
    as_process(monkeypatch, 1, 2)
    assert_same(take(DataLoader(images(10), 8, seed=5, shard=(0, 1)), 3), expected)


def test_processes_share_the_evaluation_in_equally_many_batches(monkeypatch):
    expected = list(eval_batches(images(9), 4))
    shares = []
    for p in range(2):
        as_process(monkeypatch, p, 2)
        shares.append(list(eval_batches(images(9), 4)))
    assert [len(share) for share in shares] == [3, 3]
    assert_same(together(shares), expected)


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    assert local_size(12, 4) == 3
    with pytest.raises(UserError, match=r"6 .*4 processes.*batch_size"):
        local_size(6, 4)
    as_process(monkeypatch, 0, 4)
    with pytest.raises(UserError, match="4 processes"):
        DataLoader(images(10), 6, seed=0)


def test_an_epoch_of_windows_sees_each_token_once_from_another_offset():
    stream = np.arange(161, dtype=np.int32)
    windows = TokenWindows(stream, 8)
    batches = DataLoader(windows, 4, seed=1, threads=0, shard=(0, 1))
    offsets = []
    for _ in range(6):
        epoch = [row for _ in range(len(windows) // 4) for row in batches.next()["tokens"]]
        starts = sorted(int(row[0]) for row in epoch)
        assert all(row.tolist() == list(range(row[0], row[0] + 9)) for row in epoch)
        # Side by side, but for the last one, which ends with the stream.
        assert starts[:-1] == list(range(starts[0], starts[0] + 8 * 19, 8)) and starts[0] < 8
        assert starts[-1] == min(starts[-2] + 8, 152)
        offsets.append(starts[0])
    assert len(set(offsets)) > 2


class Shifting:
    """A source that declares that its examples differ between epochs."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        raise AssertionError("read one by one")

    def epoch_batch(self, index_B, epoch_B, seed):
        return {"x": index_B, "epoch": epoch_B, "seed": np.full(len(index_B), seed)}


class InFiles:
    """A source that declares that it is stored in files of 5 examples."""

    file_ends = np.arange(5, 101, 5)
    shuffle_window = 10

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return {"x": np.int64(index)}


def test_a_source_declares_what_it_can_do():
    batches = take(DataLoader(Shifting(), 4, seed=9), 3)
    assert np.concatenate([b["epoch"] for b in batches]).tolist() == [0] * 6 + [1] * 6
    assert sorted(np.concatenate([b["x"] for b in batches])[:6]) == list(range(6))
    assert batches[0]["seed"].tolist() == [9] * 4
    windows = [set(b["x"] // 5) for b in take(DataLoader(InFiles(), 10, seed=0), 10)]
    assert all(len(files) == 2 for files in windows)


def test_the_loader_is_a_feed_that_ignores_the_state():
    one, other = (DataLoader(images(10), 4, seed=1, threads=0) for _ in range(2))
    assert_same([one.next("a state"), one.next(None)], take(other, 2))
    assert one.taken == 2
