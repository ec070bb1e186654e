"""Sharded record files: opened when they are needed, and read from object stores."""

import json
import os
import pathlib
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from helpers.hostile import refusal
from helpers.object_stores import google_server, registered, upload

from aigc_jax.core.config import Data
from aigc_jax.data import array_record_reader as shards_lib
from aigc_jax.data.array_record_reader import Shards
from aigc_jax.data.loader import DataLoader
from aigc_jax.data.shuffle import EpochShuffle
from aigc_jax.modalities import sources
from aigc_jax.modalities.prepare import prepare

LENGTHS = (4, 3, 6, 2, 5)


def write(folder, lengths=LENGTHS):
    """Files of numbered records; returns their paths."""
    paths, number = [], 0
    for shard, length in enumerate(lengths):
        paths.append(os.path.join(folder, f"x-{shard:05d}-of-{len(lengths):05d}"))
        writer = ArrayRecordWriter(paths[-1], "group_size:1")
        for _ in range(length):
            writer.write(b"%d" % number)
            number += 1
        writer.close()
    return paths


def resharded(made, lengths):
    """Writes the training records of a data set in several files, as its description then says."""
    place = pathlib.Path(made, "dataset_info.json")
    info = json.loads(place.read_text())
    (split,) = [s for s in info["splits"] if s["name"] == "train"]
    (name,) = [n for n in os.listdir(made) if "-train" in n]
    whole = Shards([os.path.join(made, name)], [sum(lengths)], 1)
    records = [whole[i] for i in range(len(whole))]
    os.remove(os.path.join(made, name))
    for shard, end in enumerate(np.cumsum(lengths)):
        stem = name.rpartition("-00000-of")[0]
        path = os.path.join(made, f"{stem}-{shard:05d}-of-{len(lengths):05d}")
        writer = ArrayRecordWriter(path, "group_size:1")
        for record in records[end - lengths[shard] : end]:
            writer.write(record)
        writer.close()
    split["shardLengths"] = [str(n) for n in lengths]
    place.write_text(json.dumps(info))


def images(folder, lengths=(7, 9, 4)):
    """A data set of images that hold their number, in several files."""
    count = sum(lengths)
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 4, 4))
    os.makedirs(folder, exist_ok=True)
    np.savez(folder / "d.npz", images=pixels, labels=np.arange(count) % 3)
    made = prepare(f"npz:{folder / 'd.npz'}", "own", str(folder))
    resharded(made, lengths)
    return made


def test_records_are_found_and_files_opened_once(tmp_path):
    shards = Shards(write(tmp_path), LENGTHS, max_open_records=100)
    assert shards.opened == 0 and len(shards) == 20
    assert shards[8] == b"8" and shards.opened == 1
    assert [int(shards[i]) for i in range(20)] == list(range(20))
    assert shards.opened == 5
    for index in (-1, 20):
        with pytest.raises(IndexError):
            shards[index]


def test_only_so_many_files_stay_open(tmp_path):
    shards = Shards(write(tmp_path), LENGTHS, max_open_records=7)
    for i in (0, 4, 0, 4):  # 4 and 3 records
        shards[i]
    assert shards.opened == 2
    shards[13]  # 2 more: the file that has waited longest is closed
    shards[4]
    assert shards.opened == 3
    shards[0]
    assert shards.opened == 4


def test_an_order_in_windows_opens_each_file_once_in_an_epoch(tmp_path):
    window = 6
    shards = Shards(write(tmp_path), LENGTHS, max_open_records=2 * window + max(LENGTHS))
    order = EpochShuffle(20, 0, shards.ends, window)
    for epoch in range(3):
        before = shards.opened
        assert sorted(int(shards[i]) for i in order(np.arange(20) + 20 * epoch)) == list(range(20))
        assert shards.opened - before <= 5
    everywhere = Shards(write(tmp_path), LENGTHS, max_open_records=6)
    for i in EpochShuffle(20, 0)(np.arange(20)):
        everywhere[int(i)]
    assert everywhere.opened > 8  # which is why there are windows


def test_a_file_that_holds_other_than_it_should_is_named(tmp_path):
    paths = write(tmp_path)
    with pytest.raises(ValueError, match=r"x-00001-of-00005 .*3"):
        Shards(paths, (4, 2, 7, 2, 5), max_open_records=100)[4]


def test_a_data_set_of_several_files_opens_no_more_than_it_reads(tmp_path, monkeypatch):
    images(tmp_path, (7, 9, 4, 30, 50))
    opened, really = [], shards_lib._reader
    monkeypatch.setattr(shards_lib, "_reader", lambda path: (opened.append(path), really(path))[1])
    data = sources.load_source(Data(source="tfds:own", data_dir=str(tmp_path), split="tail"))
    assert len(opened) == 2  # the first and the last, to see that they are there
    data.train[8]
    assert len(opened) == 3
    found = [int(part[i]["image"][0, 0, 0]) for part in (data.train, data.validation)
             for i in range(len(part))]  # fmt: skip
    assert sorted(found) == list(range(100)) and len(opened) == 5


def test_a_window_smaller_than_the_data_reads_file_by_file(tmp_path):
    images(tmp_path, (7, 9, 4, 30, 50))
    config = Data(source="tfds:own", data_dir=str(tmp_path), split="tail", shuffle_window=10)
    batches = DataLoader(sources.load_source(config).train, 8, seed=0, threads=0)
    got = np.concatenate([np.array(batches.example_ids(k)) for k in range(10)])
    assert sorted(got.tolist()) == list(range(80))
    shown = [batches.next()["image"][:, 0, 0, 0] for _ in range(10)]
    assert len(set(np.concatenate(shown).tolist())) == 80
    files = np.searchsorted([7, 16, 20, 50], got, "right")
    for file in range(5):
        (places,) = np.nonzero(files == file)
        assert np.ptp(places) < 10 + 50
    assert (np.diff(got.astype(int)) < 0).sum() > 15


def test_a_data_set_lies_in_an_object_store(tmp_path, monkeypatch):
    """S3 and others: a file is copied when it is opened, and the copy goes when it is closed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    images(tmp_path / "data")
    here = sources.load_source(Data(source="tfds:own", data_dir=str(tmp_path / "data")))
    with registered("s3") as store:
        upload(store, tmp_path / "data", "s3://bucket/sets")
        there = sources.load_source(Data(source="tfds:own", data_dir="s3://bucket/sets"))
        assert there.spec == here.spec
        for i in range(len(here.train)):
            np.testing.assert_array_equal(there.train[i]["image"], here.train[i]["image"])
        assert not [n for n in os.listdir(tmp_path / "tmp") if n.startswith("aigc")]
        message = refusal(
            sources.load_source, Data(source="tfds:other", data_dir="s3://bucket/sets")
        )
        assert "'other'" in message and "own" in message
        message = refusal(
            sources.load_source, Data(source="tfds:own", data_dir="s3://bucket/nothing")
        )
        assert "not a folder" in message


def test_a_data_set_lies_in_google_cloud_storage(tmp_path, monkeypatch):
    """Records are read where they lie, without copies."""
    images(tmp_path / "data")
    here = sources.load_source(
        Data(source="tfds:own", data_dir=str(tmp_path / "data"), split="tail")
    )
    with registered("gcs", "gs") as store:
        upload(store, tmp_path / "data", "gs://bucket/sets")

        def read(bucket, name):
            return store.cat_file(f"gs://{bucket}/{name}")

        with google_server(read) as (url, ranges):
            monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", url)
            there = sources.load_source(
                Data(source="tfds:own", data_dir="gs://bucket/sets", split="tail")
            )
            assert len({name for name, _ in ranges}) == 2  # the first and the last file
            found = [there.train[i]["image"] for i in range(16)]
            assert len({name for name, _ in ranges}) == 3
            del there  # what is open belongs to the server
    for i, image in enumerate(found):
        np.testing.assert_array_equal(image, here.train[i]["image"])


def test_a_store_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    message = refusal(sources.load_source, Data(source="tfds:own", data_dir="gs://bucket/sets"))
    assert "aigc-jax[gcs]" in message
    message = refusal(sources.load_source, Data(source="tfds:own", data_dir="ftp://bucket/sets"))
    assert "gs:// or s3://" in message
    message = refusal(prepare, "npz:x", "own", "gs://bucket/sets")
    assert "copy" in message


# Text ----------------------------------------------------------------------------------------


def text(folder, count=60):
    """A data set of documents, and what they say."""
    rng = np.random.default_rng(0)
    said = [f"document {i} " + "word " * int(n) for i, n in enumerate(rng.integers(1, 30, count))]
    with open(folder / "d.jsonl", "w") as f:
        f.writelines(json.dumps({"text": t}) + "\n" for t in said)
    resharded(prepare(f"jsonl:{folder / 'd.jsonl'}", "own", str(folder)), [count // 3] * 3)
    return said


@pytest.mark.parametrize("form", ["stream", "documents"])
def test_streamed_text_has_the_same_vocabulary(tmp_path, form):
    said = text(tmp_path)
    config = dict(source="tfds:own", data_dir=str(tmp_path), format=form, seq_len=64, split="tail")
    data = sources.load_source(Data(**config, in_memory=0))
    held = sources.load_source(Data(**config))
    assert data.spec.to_json() == held.spec.to_json()
    assert len(data.validation) == len(held.validation)
    for i in range(len(held.validation)):
        for key, value in held.validation[i].items():
            np.testing.assert_array_equal(data.validation[i][key], value)
    batches = DataLoader(data.train, 2, seed=0)
    tokens = np.concatenate([batches.next()["tokens"] for _ in range(60)])
    found = b"".join(np.asarray(row, np.uint8).tobytes() for row in tokens)
    judged = b"".join(
        np.asarray(row["tokens"], np.uint8).tobytes()
        for row in (data.validation[i] for i in range(len(data.validation)))
    )
    names = [f"document {i} ".encode() for i in range(1, len(said))]
    # A name can be cut by a row's end, but not in every epoch.
    assert sum((name in found) != (name in judged) for name in names) >= 57
    assert sum(name in judged for name in names) == 12 or form == "stream"


def test_vocabulary_of_streamed_text(tmp_path):
    text(tmp_path)
    config = dict(source="tfds:own", data_dir=str(tmp_path), seq_len=16, in_memory=0)
    assert "char" in refusal(sources.load_source, Data(**config, tokenizer="char"))
    data = sources.load_source(Data(**config, tokenizer="bpe", vocab_size=300))
    assert 256 < data.spec.tokenizer.size <= 300
    assert DataLoader(data.train, 2, seed=0).next()["tokens"].max() >= 256


def test_conversations_without_validation_split(tmp_path):
    with open(tmp_path / "d.jsonl", "w") as f:
        for i in range(40):
            turns = [dict(role="user", content=f"q {i}"), dict(role="assistant", content=f"a {i}")]
            f.write(json.dumps({"messages": turns}) + "\n")
    prepare(f"messages:{tmp_path / 'd.jsonl'}", "own", str(tmp_path))
    config = dict(
        source="tfds:own", data_dir=str(tmp_path), format="chat", seq_len=128, in_memory=0
    )
    data = sources.load_source(Data(**config))
    batch = DataLoader(data.train, 2, seed=0).next()
    assert 0 < batch["weight"].sum() < (batch["segments"] > 0).sum() and data.dialogues
