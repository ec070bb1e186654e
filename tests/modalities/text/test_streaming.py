"""Documents that are read as they are needed: the same rows for everybody, and nothing lost."""

import json

import jax
import numpy as np
import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.data.loader import DataLoader
from aigc_jax.data.mixture import MixedSource
from aigc_jax.modalities.image.image_dataset import ImageSource
from aigc_jax.modalities.text.streaming import BestFitPack, ConcatThenSplit, StreamingSource

LENGTHS = np.random.default_rng(0).integers(1, 30, 37)
ENDS = np.cumsum(LENGTHS)


class Documents:
    """Documents whose tokens are all different; notes which are read."""

    def __init__(self, weighted=False):
        self.read, self.weighted = [], weighted

    def __call__(self, number):
        self.read.append(number)
        tokens = np.arange(ENDS[number] - LENGTHS[number], ENDS[number]) + 1
        return tokens, (tokens % 3 > 0).astype(np.float32) if self.weighted else None


def packing(joined):
    return ConcatThenSplit if joined else BestFitPack


def streamed(joined=False, seq_len=11, documents=None):
    return StreamingSource(documents or Documents(), len(LENGTHS), seq_len, packing(joined))


def take(iterator, count):
    return [iterator.next() for _ in range(count)]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


def as_process(monkeypatch, process, processes):
    """One of several processes, which can see the positions of all row streams."""
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: processes)


def pairs(batches, key="weight"):
    """(input, target) of all targets with weight."""
    found = []
    for batch in batches:
        real = batch[key] > 0
        found += zip(batch["tokens"][:, :-1][real], batch["tokens"][:, 1:][real], strict=True)
    return [(int(a), int(b)) for a, b in found]


@pytest.mark.parametrize("weighted", [False, True])
def test_every_target_of_an_epoch_comes_once(weighted):
    """One lane reads all documents: an epoch is over when it has begun the next."""
    source = streamed(documents=Documents(weighted))
    got = pairs(take(DataLoader(source, 1, seed=0, threads=0), 200))
    expected = {
        (t, t + 1)
        for end, length in zip(ENDS.tolist(), LENGTHS.tolist(), strict=True)
        for t in range(end - length + 1, end)
        if not weighted or (t + 1) % 3
    }
    assert set(got) == expected
    counts = np.bincount([b for _, b in got])
    assert counts[[b for _, b in expected]].min() >= 2
    assert np.ptp(counts[[b for _, b in expected]]) <= 2  # those that wait, and the last epoch


def test_rows_are_documents_side_by_side():
    for batch in take(DataLoader(streamed(), 4, seed=0), 20):
        for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
            for segment in range(1, segments.max() + 1):
                run = tokens[segments == segment]
                assert run.tolist() == list(range(run[0], run[0] + len(run)))
    assert batch["tokens"].dtype == np.int32 and batch["weight"].shape == (4, 11)


def test_little_room_is_wasted():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4, 1, 1000), 2, None).astype(int)
    source = StreamingSource(
        lambda i: (np.ones(lengths[i], np.int32), None), 1000, 511, BestFitPack
    )
    batches = take(DataLoader(source, 4, seed=0, threads=0), 60)
    assert np.mean([batch["segments"] > 0 for batch in batches]) > 0.97


def test_joined_documents_lose_no_token():
    """Windows share one token, so that each is a target once."""
    batches = take(DataLoader(streamed(joined=True), 1, seed=0, threads=0), 100)
    line = np.concatenate([b["tokens"][0, :-1] for b in batches])
    following = np.concatenate([b["tokens"][0, 1:] for b in batches])
    assert (line[1:] == following[:-1]).all()
    starts = set((ENDS - LENGTHS + 1).tolist())
    breaks = np.flatnonzero(np.diff(line) != 1) + 1
    assert all(int(line[i]) in starts for i in breaks)
    epoch = line[: ENDS[-1]]
    assert sorted(epoch.tolist()) == list(range(1, ENDS[-1] + 1))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 13])
@pytest.mark.parametrize("joined", [False, True])
def test_seek_continues_with_exactly_the_next_rows(joined, taken, threads):
    iterator = DataLoader(streamed(joined), 4, seed=3, threads=threads)
    take(iterator, taken)
    position = json.loads(json.dumps(iterator.position()))
    expected = take(iterator, 8)
    documents = Documents()
    again = DataLoader(streamed(joined, documents=documents), 4, seed=3, threads=0)
    again.seek(position)
    # Only what waits is read again, not what was before.
    assert len(documents.read) <= 4 * 13
    assert again.position() == position
    assert_same(take(again, 8), expected)
    assert again.position() == iterator.position()


@pytest.mark.parametrize("joined", [False, True])
def test_round_trip(joined):
    iterator = DataLoader(streamed(joined), 4, seed=3)
    start = iterator.position()
    batches = take(iterator, 90)
    for number in (88, 50, 0, 3, 89):
        iterator.skip_to(number)
        assert_same([iterator.next()], [batches[number]])
    iterator.seek(start)
    assert_same(take(iterator, 5), batches[:5])


@pytest.mark.parametrize("joined", [False, True])
def test_processes_share_the_rows_of_one_and_read_no_more(joined, monkeypatch):
    whole, shares, read = Documents(), [], []
    expected = take(DataLoader(streamed(joined, documents=whole), 4, seed=5, threads=0), 9)
    for process in range(2):
        as_process(monkeypatch, process, 2)
        documents = Documents()
        source = streamed(joined, documents=documents)
        shares.append(take(DataLoader(source, 4, seed=5, threads=0), 9))
        read += documents.read
    assert sorted(read) == sorted(whole.read)
    for k, batch in enumerate(expected):
        for key in batch:
            together = np.concatenate([share[k][key] for share in shares])
            np.testing.assert_array_equal(together, batch[key])


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_resume_with_another_number_of_processes(before, after, monkeypatch):
    import aigc_jax.data.loader as pipeline

    alone = DataLoader(streamed(), 4, seed=5, threads=0)
    take(alone, 7)
    whole = alone.position()
    expected = take(alone, 4)
    rows = np.array(whole["streams"]["0"])
    positions = []
    for process in range(before):
        as_process(monkeypatch, process, before)
        monkeypatch.setattr(pipeline, "gather_rows", lambda mine, part: rows)
        iterator = DataLoader(streamed(), 4, seed=5, threads=0)
        take(iterator, 7)
        mine = iterator._iterator.get_state()["streams"]["0"]
        share = 4 // before
        np.testing.assert_array_equal(mine, rows[process * share : (process + 1) * share])
        positions.append(iterator.position())
    assert all(position == whole for position in positions)
    shares = []
    for process in range(after):
        as_process(monkeypatch, process, after)
        again = DataLoader(streamed(), 4, seed=5, threads=0)
        again.seek(whole)
        shares.append(take(again, 4))
    for k, batch in enumerate(expected):
        together = np.concatenate([share[k]["tokens"] for share in shares])
        np.testing.assert_array_equal(together, batch["tokens"])


def test_streams_are_mixed_with_each_other_and_go_on():
    def source():
        other = StreamingSource(lambda i: (np.arange(1000, 1020), None), 5, 11, BestFitPack)
        return MixedSource([streamed(), other], [3, 1])

    iterator = DataLoader(source(), 8, seed=0)
    for batch in take(iterator, 10):
        assert (batch["tokens"][:, 0] >= 1000).sum() == 2
    position = json.loads(json.dumps(iterator.position()))
    assert position["mixture"] == [60, 20]
    expected = take(iterator, 5)
    again = DataLoader(source(), 8, seed=0)
    again.seek(position)
    assert_same(take(again, 5), expected)


def test_documents_of_a_batch_are_known():
    iterator = DataLoader(streamed(), 4, seed=0)
    batch = iterator.next()
    found = {int(np.searchsorted(ENDS, t - 1, "right")) for t in batch["tokens"].ravel() if t}
    assert set(iterator.example_ids(0)) == found


@pytest.mark.parametrize("joined", [False, True])
def test_empty_documents_end_the_run(joined):
    nothing = StreamingSource(lambda i: (np.zeros(0, np.int32), None), 5, 11, packing(joined))
    with pytest.raises(UserError, match="no target token"):
        DataLoader(nothing, 1, seed=0, threads=0).next()


def test_a_billion_documents_are_no_more_than_five():
    made = []
    document = lambda i: (made.append(i), (np.full(20, i % 99 + 1), None))[1]  # noqa: E731
    iterator = DataLoader(StreamingSource(document, 10**9, 11, BestFitPack), 4, seed=0, threads=0)
    take(iterator, 5)
    assert len(made) < 4 * 40 and max(made) > 10**8 and len(set(made)) == len(made)
    assert len(json.dumps(iterator.position())) < 4000


def test_images_have_no_streams():
    iterator = DataLoader(ImageSource(lambda i: (np.zeros((1, 1, 1)), i), range(5)), 2, seed=0)
    assert "streams" not in iterator.position()
