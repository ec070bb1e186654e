"""Own files → a TFDS data set → the same pixels, labels and texts; and files that are refused."""

import gzip
import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError
from aigc_jax.modalities import readers, sources
from aigc_jax.modalities.prepare import prepare

TIMES = "\N{MULTIPLICATION SIGN}"


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def idx_bytes(array):
    sizes = b"".join(struct.pack(">I", n) for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_idx(folder, name, array, gzipped=False):
    folder.mkdir(exist_ok=True)
    data = idx_bytes(array)
    path = folder / (name + ".gz" if gzipped else name)
    path.write_bytes(gzip.compress(data) if gzipped else data)
    return path


def examples(content, split="train"):
    return [example() for example in content.splits[split]]


def records(source):
    """Images and labels of a source, as a sorted list: TFDS keeps no order."""
    rows = [source[i] for i in range(len(source))]
    return sorted((row["image"].tobytes(), int(row.get("label", -1))) for row in rows)


def expected(images, labels=None):
    labels = [-1] * len(images) if labels is None else labels
    return sorted((i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True))


def load(name, folder, **options):
    return sources.load_source(Data(source=f"tfds:{name}", data_dir=str(folder), **options))


# Readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "colour"])
def test_flat_folder(tmp_path, channels):
    images = pixels(3, 4, 5, *channels)
    for i, image in enumerate(images):
        write_image(tmp_path / f"{i}.png", image)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_text("nor this")
    content = readers.read_files(f"folder:{tmp_path}")
    assert content.image_shape == (4, 5, 3 if channels else 1)
    assert content.class_names == ()
    got = examples(content)
    assert all(e.keys() == {"image"} and e["image"].dtype == np.uint8 for e in got)
    np.testing.assert_array_equal([e["image"] for e in got], images.reshape(3, 4, 5, -1))


def test_grey_images_among_colours_become_colours(tmp_path):
    write_image(tmp_path / "a.png", pixels(2, 2, 3))
    grey = pixels(2, 2, seed=1)
    write_image(tmp_path / "b.png", grey)
    content = readers.read_files(f"folder:{tmp_path}")
    assert content.image_shape == (2, 2, 3)
    np.testing.assert_array_equal(examples(content)[1]["image"], np.stack([grey] * 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_lie_on_white(tmp_path, mode):
    """Whatever colour hides there, scaled or not."""
    image = np.full((8, 8, 4), (200, 10, 10, 0), np.uint8)
    image[2:6, 2:6] = (80, 80, 80, 255)
    Image.fromarray(image).convert(mode).save(tmp_path / "a.png")
    (got,) = examples(readers.read_files(f"folder:{tmp_path}"))
    seen = np.where(image[..., 3:] > 0, 80, 255)
    assert np.abs(got["image"].astype(int) - seen).max() <= 1  # a palette has few greys
    (small,) = examples(readers.read_files(f"folder:{tmp_path}", image_size=4))
    assert small["image"][0, 0].tolist() == [255] * got["image"].shape[-1]


def test_class_folders(tmp_path):
    images = {"cat": pixels(2, 3, 3), "ape": pixels(1, 3, 3, seed=1), "犬": pixels(1, 3, 3, seed=2)}
    for name, arrays in images.items():
        for i, array in enumerate(arrays):
            write_image(tmp_path / name / "deeper" / f"{i}.png", array)
    content = readers.read_files(f"folder:{tmp_path}")
    assert content.class_names == ("ape", "cat", "犬")
    got = [(e["label"], e["image"][..., 0].tolist()) for e in examples(content)]
    assert got == [
        (i, array.tolist()) for i, n in enumerate(content.class_names) for array in images[n]
    ]


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("names", [("train", "test"), ("training", "val")])
def test_split_folders(tmp_path, names, classes):
    for k, split in enumerate(names):
        for i in range(3 - k):
            folder = tmp_path / split / f"class_{i % 2}" if classes else tmp_path / split
            write_image(folder / f"{i}.png", pixels(2, 2, seed=10 * k + i))
    content = readers.read_files(f"folder:{tmp_path}")
    held_out = {"test": "test", "val": "validation"}[names[1]]
    assert {s: len(e) for s, e in content.splits.items()} == {"train": 3, held_out: 2}
    assert content.class_names == (("class_0", "class_1") if classes else ())
    np.testing.assert_array_equal(
        examples(content, held_out)[-1]["image"][..., 0], pixels(2, 2, seed=11)
    )


def test_image_size_mends_odd_sizes(tmp_path):
    write_image(tmp_path / "a.png", np.full((4, 8), 100, np.uint8))
    write_image(tmp_path / "b.png", np.full((7, 3, 3), 200, np.uint8))
    content = readers.read_files(f"folder:{tmp_path}", image_size=2)
    a, b = (e["image"] for e in examples(content))
    assert a.shape == b.shape == content.image_shape == (2, 2, 3)
    assert (a == 100).all() and (b == 200).all()


def test_image_size_crops_at_the_centre(tmp_path):
    stripes = np.repeat(np.array([0, 90, 90, 255], np.uint8), 2)[None].repeat(4, 0)
    write_image(tmp_path / "a.png", stripes)
    (example,) = examples(readers.read_files(f"folder:{tmp_path}", image_size=4))
    assert (example["image"] == 90).all()


def test_text_files_are_one_document_each(tmp_path):
    texts = {"b.txt": "zwei\r\nZeilen", "a.txt": "中文\n", "c.md": "no match", "d.txt": " \n"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.txt").write_bytes(b"\xef\xbb\xbfwith a BOM")
    content = readers.read_files(f"text:{tmp_path}/*.txt")
    assert [e["text"] for e in examples(content)] == ["中文\n", "zwei\r\nZeilen"]
    assert content.image_shape is None
    content = readers.read_files(f"text:{tmp_path}/**/*.txt")
    assert [e["text"] for e in examples(content)][-1] == "with a BOM"


@pytest.mark.parametrize("field", ["text", "body"])
def test_jsonl(tmp_path, field):
    lines = [json.dumps({field: t, "id": i}) for i, t in enumerate(["one\ntwo", "中文🙂"])]
    path = tmp_path / "d.jsonl"
    path.write_text(lines[0] + "\n\n" + lines[1], encoding="utf-8")
    content = readers.read_files(f"jsonl:{path}", text_field=field)
    assert [e["text"] for e in examples(content)] == ["one\ntwo", "中文🙂"]


X, Y = pixels(4, 3, 2), np.array([7, 3, 7, 5])
X2, Y2 = pixels(2, 3, 2, seed=1), np.array([3, 9])


@pytest.mark.parametrize(
    "arrays, splits, names",
    [
        (dict(images=X), {"train": (X, None)}, ()),
        (dict(images=X, labels=Y), {"train": (X, [2, 0, 2, 1])}, ("3", "5", "7")),
        (dict(x=X[..., None], y=Y[:, None]), {"train": (X, [2, 0, 2, 1])}, ("3", "5", "7")),
        (
            dict(x_train=X, y_train=Y, x_test=X2, y_test=Y2),
            {"train": (X, [2, 0, 2, 1]), "test": (X2, [0, 3])},
            ("3", "5", "7", "9"),
        ),
        (
            dict(train_images=X, train_labels=Y, val_images=X2, val_labels=Y2),
            {"train": (X, [2, 0, 2, 1]), "validation": (X2, [0, 3])},
            ("3", "5", "7", "9"),
        ),
    ],
    ids=["images", "labels", "column of labels", "Keras", "MedMNIST"],
)
def test_npz(tmp_path, arrays, splits, names):
    content = readers.read_files(f"npz:{write_npz(tmp_path / 'd.npz', **arrays)}")
    assert content.image_shape == (3, 2, 1)
    assert content.class_names == names
    assert content.splits.keys() == splits.keys()
    for split, (images, labels) in splits.items():
        got = examples(content, split)
        np.testing.assert_array_equal([e["image"][..., 0] for e in got], images)
        assert [e.get("label") for e in got] == (labels or [None] * len(images))


def test_npz_in_colour(tmp_path):
    images = pixels(2, 3, 4, 3)
    content = readers.read_files(f"npz:{write_npz(tmp_path / 'd.npz', images=images)}")
    assert content.image_shape == (3, 4, 3)
    np.testing.assert_array_equal([e["image"] for e in examples(content)], images)


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_idx(tmp_path, gzipped, dot):
    images, labels = pixels(5, 3, 2), np.array([1, 0, 2, 1, 0], np.uint8)
    for stem, count in (("train", 5), ("t10k", 2)):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{stem}-{kind}-ubyte"
            name = name.replace("-idx", ".idx") if dot else name
            write_idx(tmp_path / "idx", name, array[:count], gzipped)
    content = readers.read_files(f"idx:{tmp_path / 'idx'}")
    assert content.class_names == ("0", "1", "2")
    for split, count in (("train", 5), ("test", 2)):
        got = examples(content, split)
        np.testing.assert_array_equal([e["image"][..., 0] for e in got], images[:count])
        assert [e["label"] for e in got] == labels[:count].tolist()


# Round trips ---------------------------------------------------------------------------------


def test_images_with_labels_and_two_splits_round_trip(tmp_path):
    images, labels = pixels(12, 4, 3, 3), np.arange(12) % 3
    path = write_npz(
        tmp_path / "d.npz",
        x_train=images[:8], y_train=labels[:8], x_test=images[8:], y_test=labels[8:],
    )  # fmt: skip
    folder = prepare(f"npz:{path}", "own", str(tmp_path / "data"))
    assert os.path.isdir(folder) and folder.startswith(str(tmp_path / "data" / "own"))
    data = load("own", tmp_path / "data")
    assert data.spec.shape == (4, 3, 3) and data.spec.class_names == ("0", "1", "2")
    assert records(data.train) == expected(images[:8], labels[:8])
    assert records(data.validation) == expected(images[8:], labels[8:])
    example = data.train[0]
    assert example["image"].dtype == np.uint8
    assert example["weight"] == 1 and example["weight"].dtype == np.float32
    assert example["label"].dtype == np.int32
    assert "tensorflow" not in sys.modules


def test_images_without_labels_are_split_by_fraction(tmp_path):
    for i in range(10):
        write_image(tmp_path / "in" / f"{i}.png", pixels(3, 3, seed=i))
    prepare(f"folder:{tmp_path / 'in'}", "own", str(tmp_path / "data"))
    data = load("own", tmp_path / "data", validation_fraction=0.3)
    assert (len(data.train), len(data.validation)) == (7, 3)
    assert "label" not in data.train[0]
    everything = [pixels(3, 3, 1, seed=i) for i in range(10)]
    assert sorted(records(data.train) + records(data.validation)) == expected(everything)
    assert (
        len(load("own", tmp_path / "data", validation_fraction=0.3, max_train_examples=2).train)
        == 2
    )


def test_class_names_round_trip(tmp_path):
    for name in ("Katze", "犬", "two words"):
        write_image(tmp_path / "in" / name / "a.png", pixels(3, 3, seed=len(name)))
    prepare(f"folder:{tmp_path / 'in'}", "own", str(tmp_path / "data"))
    data = load("own", tmp_path / "data", validation_fraction=0.34)
    assert data.spec.class_names == ("Katze", "two words", "犬")
    by_label = {label: image for image, label in records(data.train) + records(data.validation)}
    for label, name in enumerate(data.spec.class_names):
        assert by_label[label] == pixels(3, 3, seed=len(name)).tobytes()


def test_texts_round_trip(tmp_path):
    texts = [f"Dokument {i}: " + "中文 🙂\r\n\ttext\x00 " * 5 for i in range(30)]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    prepare(f"jsonl:{path}", "own", str(tmp_path / "data"))
    data = load("own", tmp_path / "data", seq_len=16)
    assert sorted(data.texts["train"] + data.texts["validation"]) == sorted(texts)
    assert data.train[0]["tokens"].shape == (17,)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["mnist", "cifar10", "digits"])
def test_a_name_of_the_tfds_catalogue_is_as_good_as_any(tmp_path, name):
    images = pixels(4, 2, 2)
    prepare(f"npz:{write_npz(tmp_path / 'd.npz', images=images)}", name, str(tmp_path))
    data = load(name, tmp_path, validation_fraction=0.5)
    assert sorted(records(data.train) + records(data.validation)) == expected(images)


def test_labels_in_one_split_only_are_left_out(tmp_path):
    path = write_npz(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X2)
    prepare(f"npz:{path}", "own", str(tmp_path))
    data = load("own", tmp_path)
    assert data.spec.num_classes == 0
    assert (records(data.train), records(data.validation)) == (expected(X), expected(X2))


# Bad input -----------------------------------------------------------------------------------
# Each function writes a source that must be refused and returns it with what the message names.


def missing_folder(root):
    return f"folder:{root / 'gone'}", [str(root / "gone")]


def empty_folder(root):
    (root / "in").mkdir()
    (root / "in" / "notes.txt").write_text("no image")
    return f"folder:{root / 'in'}", [str(root / "in"), ".png"]


def broken_image(root):
    write_image(root / "in" / "a.png", pixels(4, 4))
    (root / "in" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return f"folder:{root / 'in'}", [str(root / "in" / "b.png")]


def cut_off_image(root):
    write_image(root / "in" / "a.png", pixels(40, 40))
    path = write_image(root / "in" / "b.png", pixels(40, 40, seed=1))
    path.write_bytes(path.read_bytes()[:900])
    return f"folder:{root / 'in'}", [str(path)]


def empty_image(root):
    (root / "in").mkdir()
    (root / "in" / "a.jpg").write_bytes(b"")
    return f"folder:{root / 'in'}", [str(root / "in" / "a.jpg")]


def huge_image(root):
    """A header that claims 9,000 × 9,000 pixels, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (root / "in").mkdir()
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (root / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + data)
    return f"folder:{root / 'in'}", [str(root / "in" / "a.png"), f"9000{TIMES}9000"]


def odd_sized_image(root):
    write_image(root / "in" / "a.png", pixels(4, 4))
    write_image(root / "in" / "b.png", pixels(4, 5))
    return f"folder:{root / 'in'}", [str(root / "in" / "b.png"), f"5{TIMES}4", "--image_size"]


def image_beside_class_folders(root):
    write_image(root / "in" / "cat" / "a.png", pixels(4, 4))
    write_image(root / "in" / "stray.png", pixels(4, 4))
    return f"folder:{root / 'in'}", [str(root / "in" / "stray.png")]


def image_beside_split_folders(root):
    write_image(root / "in" / "train" / "a.png", pixels(4, 4))
    write_image(root / "in" / "stray.png", pixels(4, 4))
    return f"folder:{root / 'in'}", [str(root / "in" / "stray.png")]


def two_folders_for_one_split(root):
    write_image(root / "in" / "train" / "a.png", pixels(4, 4))
    write_image(root / "in" / "training" / "b.png", pixels(4, 4))
    return f"folder:{root / 'in'}", [str(root / "in"), "training"]


def empty_split_folder(root):
    write_image(root / "in" / "train" / "a.png", pixels(4, 4))
    (root / "in" / "test").mkdir()
    return f"folder:{root / 'in'}", [str(root / "in" / "test")]


def sixteen_bit_image(root):
    """Cut down to 8 bits it would be nearly all white."""
    write_image(root / "in" / "a.png", (np.arange(16).reshape(4, 4) * 4096).astype(np.uint16))
    return f"folder:{root / 'in'}", [str(root / "in" / "a.png")]


def latin_1_text(root):
    (root / "a.txt").write_bytes(b"gut")
    (root / "b.txt").write_bytes("schön".encode("latin-1"))
    return f"text:{root}/*.txt", [str(root / "b.txt"), "UTF-8"]


def empty_text(root):
    (root / "a.txt").write_text(" \n\n")
    return f"text:{root / 'a.txt'}", [str(root / "a.txt")]


def no_such_text(root):
    return f"text:{root}/*.txt", [f"{root}/*.txt"]


def jsonl_with(root, line):
    path = root / "d.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    return f"jsonl:{path}", [f"line 2 of {path}"]


def jsonl_broken_line(root):
    return jsonl_with(root, b'{"text": "cut')


def jsonl_missing_field(root):
    source, culprits = jsonl_with(root, b'{"body": "other"}')
    return source, [*culprits, "'text'", "--text_field"]


def jsonl_number_for_text(root):
    return jsonl_with(root, b'{"text": 3}')


def jsonl_no_object(root):
    return jsonl_with(root, b'["text"]')


def jsonl_endless_number(root):
    return jsonl_with(root, b'{"text": "a", "id": ' + b"1" * 5000 + b"}")


def jsonl_deep_nesting(root):
    return jsonl_with(root, b"[" * 100_000)


def jsonl_lone_surrogate(root):
    return jsonl_with(root, rb'{"text": "half of \ud83d an emoji"}')


def jsonl_latin_1(root):
    return jsonl_with(root, '{"text": "schön"}'.encode("latin-1"))


def jsonl_empty(root):
    (root / "d.jsonl").write_text("\n")
    return f"jsonl:{root / 'd.jsonl'}", [str(root / "d.jsonl")]


def jsonl_missing(root):
    return f"jsonl:{root / 'd.jsonl'}", [str(root / "d.jsonl")]


def npz_with(root, **arrays):
    path = write_npz(root / "d.npz", **arrays)
    return f"npz:{path}", [str(path)]


def npz_of_pickles(root):
    class Trap:
        def __reduce__(self):
            return (open, (str(root / "pickle_was_run"), "w"))

    source, culprits = npz_with(root, images=np.array([Trap()], dtype=object))
    # numpy wrote the pickle, and reading it would create this file.
    assert not (root / "pickle_was_run").exists()
    return source, culprits


def npz_float_images(root):
    source, culprits = npz_with(root, images=np.zeros((3, 4, 4), np.float32))
    return source, [*culprits, "float32", "uint8"]


def npz_wrong_shape(root):
    return npz_with(root, images=pixels(3, 4, 4, 4))


def npz_no_images(root):
    return npz_with(root, images=pixels(0, 4, 4))


def npz_no_pixels(root):
    return npz_with(root, images=pixels(3, 0, 4))


def npz_label_count(root):
    source, culprits = npz_with(root, images=pixels(3, 4, 4), labels=np.arange(4))
    return source, [*culprits, "labels", "3 images"]


def npz_float_labels(root):
    return npz_with(root, images=pixels(3, 4, 4), labels=np.zeros(3))


def npz_unknown_names(root):
    source, culprits = npz_with(root, pictures=pixels(3, 4, 4))
    return source, [*culprits, "pictures"]


def npz_splits_of_two_shapes(root):
    return npz_with(root, x_train=pixels(3, 4, 4), x_test=pixels(3, 5, 4))


def npz_that_is_none(root):
    (root / "d.npz").write_bytes(b"PK\x03\x04 no zip")
    return f"npz:{root / 'd.npz'}", [str(root / "d.npz")]


def npz_missing(root):
    return f"npz:{root / 'd.npz'}", [str(root / "d.npz")]


IDX = "train-images-idx3-ubyte"


def idx_with(root, data, name=IDX):
    (root / "idx").mkdir(exist_ok=True)
    (root / "idx" / name).write_bytes(data)
    return f"idx:{root / 'idx'}", [str(root / "idx" / name)]


def idx_missing(root):
    (root / "idx").mkdir()
    return f"idx:{root / 'idx'}", [str(root / "idx"), IDX]


def idx_truncated(root):
    return idx_with(root, idx_bytes(pixels(3, 4, 4))[:-1])


def idx_too_long(root):
    return idx_with(root, idx_bytes(pixels(3, 4, 4)) + b"\x00")


def idx_without_whole_header(root):
    return idx_with(root, idx_bytes(pixels(3, 4, 4))[:9])


def idx_of_other_type(root):
    return idx_with(root, b"\x00\x00\x0d\x03" + idx_bytes(pixels(3, 4, 4))[4:])


def idx_absurd_header(root):
    source, culprits = idx_with(root, bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(48))
    return source, [*culprits, TIMES.join(3 * [str(2**32 - 1)])]


def idx_large_claim(root):
    """Less than the machine may have, but far more than the file has."""
    return idx_with(root, bytes([0, 0, 8, 3]) + struct.pack(">III", 9_000, 1_000, 1_000) + bytes(9))


def idx_gzip_cut_off(root):
    return idx_with(root, gzip.compress(idx_bytes(pixels(9, 8, 8)))[:200], IDX + ".gz")


def idx_gzip_damaged(root):
    data = bytearray(gzip.compress(idx_bytes(pixels(9, 8, 8))))
    data[10] ^= 0x06  # the kind of the first block: now none that there is
    return idx_with(root, bytes(data), IDX + ".gz")


def idx_no_gzip(root):
    return idx_with(root, idx_bytes(pixels(3, 4, 4)), IDX + ".gz")


def idx_label_count(root):
    source, _ = idx_with(root, idx_bytes(pixels(3, 4, 4)))
    idx_with(root, idx_bytes(np.zeros(2, np.uint8)), "train-labels-idx1-ubyte")
    return source, [str(root / "idx"), "train labels", "3 images"]


def unknown_kind(root):
    return f"zip:{root}", [f"--from=zip:{root}", "folder", "jsonl"]


def no_kind(root):
    return str(root), [f"--from={root}"]


def no_path(root):
    return "folder:", ["--from=folder:"]


BAD = [
    missing_folder, empty_folder, broken_image, cut_off_image, empty_image, huge_image,
    odd_sized_image, image_beside_class_folders, image_beside_split_folders,
    two_folders_for_one_split, empty_split_folder, sixteen_bit_image,
    latin_1_text, empty_text, no_such_text,
    jsonl_broken_line, jsonl_missing_field, jsonl_number_for_text, jsonl_no_object,
    jsonl_endless_number, jsonl_deep_nesting, jsonl_lone_surrogate, jsonl_latin_1, jsonl_empty,
    jsonl_missing,
    npz_of_pickles, npz_float_images, npz_wrong_shape, npz_no_images, npz_no_pixels,
    npz_label_count, npz_float_labels, npz_unknown_names, npz_splits_of_two_shapes,
    npz_that_is_none, npz_missing,
    idx_missing, idx_truncated, idx_too_long, idx_without_whole_header, idx_of_other_type,
    idx_absurd_header, idx_large_claim, idx_gzip_cut_off, idx_gzip_damaged, idx_no_gzip,
    idx_label_count,
    unknown_kind, no_kind, no_path,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_bad_input_is_named_and_leaves_the_name_free(tmp_path, bad):
    source, culprits = bad(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare(source, "own", str(tmp_path / "data"))
    message = str(caught.value)
    assert all(culprit in message for culprit in culprits), message
    assert "\n" not in message
    assert not (tmp_path / "data" / "own").exists()
    assert not (tmp_path / "pickle_was_run").exists()


def test_a_corrected_source_can_be_prepared_under_the_same_name(tmp_path):
    source, _ = broken_image(tmp_path)
    data_dir = str(tmp_path / "data")
    with pytest.raises(UserError):
        prepare(source, "own", data_dir)
    write_image(tmp_path / "in" / "b.png", pixels(4, 4, seed=1))
    prepare(source, "own", data_dir)
    data = load("own", data_dir, validation_fraction=0.5)
    assert len(data.train) == len(data.validation) == 1


def test_image_size_resolves_the_error(tmp_path):
    source, _ = odd_sized_image(tmp_path)
    prepare(source, "own", str(tmp_path / "data"), image_size=4)
    assert load("own", tmp_path / "data", validation_fraction=0.5).spec.shape == (4, 4, 1)


def test_text_field_resolves_the_error(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({"body": f"document {i}"}) for i in range(30)))
    prepare(f"jsonl:{path}", "own", str(tmp_path / "data"), text_field="body")
    texts = load("own", tmp_path / "data", seq_len=8).texts
    assert len(texts["train"] + texts["validation"]) == 30


def test_a_file_that_breaks_while_records_are_written_leaves_the_name_free(tmp_path, monkeypatch):
    """Files are checked first, but may be gone when their turn comes."""
    for i in range(3):
        write_image(tmp_path / "in" / f"{i}.png", pixels(4, 4, seed=i))
    source, data_dir = f"folder:{tmp_path / 'in'}", str(tmp_path / "data")

    read = readers.read_files

    def read_and_lose(*args, **kwargs):
        content = read(*args, **kwargs)
        os.remove(tmp_path / "in" / "1.png")
        return content

    with monkeypatch.context() as patch:
        patch.setattr(readers, "read_files", read_and_lose)
        with pytest.raises(UserError, match=r"1\.png"):
            prepare(source, "own", data_dir)
    prepare(source, "own", data_dir)
    data = load("own", data_dir, validation_fraction=0.5)
    assert len(data.train) == len(data.validation) == 1


def test_a_full_disk_leaves_the_name_free(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "d.npz", images=pixels(4, 2, 2))

    def example():
        raise OSError("no space left on device")

    content = readers.RawDataset({"train": [example]}, (2, 2, 1))
    with monkeypatch.context() as patch:
        patch.setattr(readers, "read_files", lambda *args, **kwargs: content)
        with pytest.raises((OSError, UserError), match="no space left"):
            prepare(f"npz:{path}", "own", str(tmp_path / "data"))
    prepare(f"npz:{path}", "own", str(tmp_path / "data"))
    assert len(load("own", tmp_path / "data", validation_fraction=0.5).train) == 2


def test_an_existing_name_is_refused_and_left_alone(tmp_path):
    path = write_npz(tmp_path / "d.npz", images=pixels(4, 2, 2))
    prepare(f"npz:{path}", "own", str(tmp_path / "data"))
    write_npz(path, images=pixels(6, 2, 2, seed=1))
    with pytest.raises(UserError, match="own exists already"):
        prepare(f"npz:{path}", "own", str(tmp_path / "data"))
    data = load("own", tmp_path / "data", validation_fraction=0.5)
    assert sorted(records(data.train) + records(data.validation)) == expected(pixels(4, 2, 2))


@pytest.mark.parametrize(
    "name", ["../x", "", ".", "..", "a/b", "/a", "A", "1a", "_a", "a-b", "a b", "é", "a\n", "a:b"]
)
def test_a_bad_name_is_refused(tmp_path, name):
    path = write_npz(tmp_path / "d.npz", images=pixels(4, 2, 2))
    with pytest.raises(UserError) as caught:
        prepare(f"npz:{path}", name, str(tmp_path / "data"))
    assert "--name=" + name.replace("\n", r"\n") in str(caught.value)
    assert os.listdir(tmp_path) == ["d.npz"]


@pytest.mark.parametrize("size", [-5, 100_000])
def test_an_image_size_that_cannot_be_is_refused(tmp_path, size):
    """Only read, not prepared: nothing is resized before the first record is written."""
    write_image(tmp_path / "a.png", pixels(4, 4))
    with pytest.raises(UserError, match="image_size"):
        readers.read_files(f"folder:{tmp_path}", image_size=size)


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    path = write_npz(tmp_path / "d.npz", images=pixels(4, 2, 2))
    with pytest.raises(UserError, match=r"data_dir=.*d\.npz"):
        prepare(f"npz:{path}", "own", str(path))


# Loading -------------------------------------------------------------------------------------


def test_loading_from_a_missing_folder_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError) as caught:
        load("own", tmp_path / "gone")
    assert str(tmp_path / "gone") in str(caught.value)
    assert "aigc prepare --name=own" in str(caught.value)


def test_unknown_name_suggests_the_nearest(tmp_path):
    path = write_npz(tmp_path / "d.npz", images=pixels(4, 2, 2))
    prepare(f"npz:{path}", "flowers", str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"'flower' .*did you mean 'flowers'"):
        load("flower", tmp_path / "data")


@pytest.mark.parametrize("source", ["digit", "tfds", "tfds:", "imagenet", ""])
def test_an_unknown_source_is_refused(source):
    with pytest.raises(UserError, match=r"data\.source"):
        sources.load_source(Data(source=source))


@pytest.mark.parametrize("fraction", [0.0, 0.05])
def test_a_fraction_that_holds_nothing_out_is_refused(tmp_path, fraction):
    prepare(f"npz:{write_npz(tmp_path / 'd.npz', images=X)}", "own", str(tmp_path))
    with pytest.raises(UserError, match="validation_fraction"):
        load("own", tmp_path, validation_fraction=fraction)


def test_text_shorter_than_a_window_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    prepare(f"text:{tmp_path / 'a.txt'}", "own", str(tmp_path / "data"))
    with pytest.raises(UserError, match="seq_len=128"):
        load("own", tmp_path / "data")


def test_a_damaged_data_set_is_refused(tmp_path):
    folder = prepare(f"npz:{write_npz(tmp_path / 'd.npz', images=X)}", "own", str(tmp_path))
    with open(os.path.join(folder, "dataset_info.json"), "w") as f:
        f.write("{")
    with pytest.raises(UserError, match="'own'"):
        load("own", tmp_path)


def test_embedded_sources_need_no_files():
    digits = sources.load_source(Data(source="digits", data_dir="nowhere"))
    assert digits.spec.shape == (8, 8, 1) and digits.spec.num_classes == 10
    assert (len(digits.train), len(digits.validation)) == (1438, 359)
    values = np.unique([digits.train[i]["image"] for i in range(200)])
    assert len(values) == digits.spec.levels == 17 and (values[0], values[-1]) == (0, 255)
    docs = sources.load_source(Data(source="python_docs", seq_len=32))
    held_out, total = (sum(map(len, docs.texts[s])) for s in ("validation", "train"))
    assert held_out / (held_out + total) == pytest.approx(0.2, abs=0.05)
