"""Data given from Python: every form that is accepted, and errors that name the field."""

import numpy as np
import pytest
from helpers.hostile import refusal

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError
from aigc_jax.data.loader import DataLoader
from aigc_jax.modalities import sources
from aigc_jax.modalities.in_memory import (
    check_fingerprint,
    data_fingerprint,
    dataset_from_python,
    raw_dataset_from_python,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), np.uint8)
LABELS = np.arange(20) % 4
TEXTS = [f"text number {i} of a list\n" * 3 for i in range(40)]
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


class Table:
    """A stand-in for a Hugging Face `Dataset`: columns by name, rows by number."""

    def __init__(self, columns, features=None):
        self._columns, self.column_names = columns, list(columns)
        self.features = features or {}

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self._columns[key]
        return {name: values[key] for name, values in self._columns.items()}


class ClassLabel:
    names = ("cat", "dog", "owl", "pig")


class Frame:
    """A stand-in for a pandas `DataFrame`."""

    def __init__(self, columns):
        self._columns, self.columns = columns, list(columns)

    def to_dict(self, orient):
        assert orient == "list"
        return {name: list(values) for name, values in self._columns.items()}


def examples(raw, split="train"):
    return [example() for example in raw.splits[split]]


IMAGE_FORMS = {
    "arrays": lambda: {"image": IMAGES, "label": LABELS},
    "plural names": lambda: {"images": IMAGES, "labels": LABELS},
    "lists": lambda: {"image": list(IMAGES), "label": LABELS.tolist(), "id": list(range(20))},
    "dicts": lambda: [{"image": x, "label": int(y)} for x, y in zip(IMAGES, LABELS, strict=True)],
    "generator": lambda: ({"image": x, "label": y} for x, y in zip(IMAGES, LABELS, strict=True)),
    "table": lambda: Table({"image": list(IMAGES), "label": LABELS.tolist(), "id": TEXTS[:20]}),
    "frame": lambda: Frame({"image": list(IMAGES), "label": LABELS}),
}


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_images_in_every_form_are_the_same_data_set(form):
    raw = raw_dataset_from_python(IMAGE_FORMS[form]())
    assert (raw.kind, raw.image_shape, raw.class_names) == ("image", (4, 5, 3), tuple("0123"))
    found = examples(raw)
    np.testing.assert_array_equal([e["image"] for e in found], IMAGES)
    np.testing.assert_array_equal([e["label"] for e in found], LABELS)
    assert data_fingerprint(raw) == data_fingerprint(
        raw_dataset_from_python(IMAGE_FORMS["arrays"]())
    )


def test_grey_images_without_channels_or_labels():
    for data in ({"image": IMAGES[..., 0]}, IMAGES[..., 0], IMAGES[..., :1]):
        raw = raw_dataset_from_python(data)
        assert raw.image_shape == (4, 5, 1) and raw.class_names == ()


TEXT_FORMS = {
    "list": lambda: TEXTS,
    "generator": lambda: iter(TEXTS),
    "columns": lambda: {"text": TEXTS},
    "dicts": lambda: [{"text": t} for t in TEXTS],
    "array": lambda: {"text": np.array(TEXTS)},
    "frame": lambda: Frame({"text": TEXTS}),
}


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_texts_in_every_form_are_the_same_data_set(form):
    raw = raw_dataset_from_python(TEXT_FORMS[form]())
    assert raw.kind == "text" and [e["text"] for e in examples(raw)] == TEXTS


def test_labelled_texts_keep_their_classes():
    raw = raw_dataset_from_python([dict(text="a b", label="y"), dict(text="c", label="x")])
    assert raw.class_names == ("x", "y") and [e["label"] for e in examples(raw)] == [1, 0]
    raw = raw_dataset_from_python({"text": ["a", "b"], "label": [True, False]})
    assert raw.class_names == ("false", "true")
    table = Table({"text": ["a", "b"], "label": [3, 1]}, {"label": ClassLabel()})
    raw = raw_dataset_from_python(table)
    assert raw.class_names == ClassLabel.names
    assert [e["label"] for e in examples(raw)] == [3, 1]
    images = Table({"image": list(IMAGES), "label": [3, 1] * 10}, {"label": ClassLabel()})
    raw = raw_dataset_from_python(images)
    assert raw.class_names == ClassLabel.names
    assert [e["label"] for e in examples(raw)][:2] == [3, 1]


@pytest.mark.parametrize("data", [[CHAT] * 3, [{"messages": CHAT}] * 3, {"messages": [CHAT] * 3}])
def test_conversations(data):
    raw = raw_dataset_from_python(data)
    assert raw.kind == "messages" and [e["messages"] for e in examples(raw)] == [CHAT] * 3


def test_tagged_sentences():
    raw = raw_dataset_from_python({"words": [["one", "two"]], "tags": [["O", "B-x"]]})
    assert raw.kind == "words" and examples(raw) == [
        {"words": ["one", "two"], "tags": ["O", "B-x"]}
    ]


@pytest.mark.parametrize(
    "data",
    [
        (TEXTS[:30], TEXTS[30:]),
        {"train": TEXTS[:30], "validation": iter(TEXTS[30:])},
        {"train": TEXTS[:30], "test": {"text": TEXTS[30:]}},
    ],
)
def test_splits_are_kept(data):
    dataset = dataset_from_python(data, Data(seq_len=16))
    assert dataset.texts == {"train": TEXTS[:30], "validation": TEXTS[30:]}


def test_a_data_set_is_built_as_of_files():
    data = {"image": IMAGES, "label": LABELS}
    config = Data(validation_fraction=0.25)
    dataset = dataset_from_python(data, config)
    assert (len(dataset.train), len(dataset.validation)) == (15, 5)
    assert dataset.spec.class_names == tuple("0123") and dataset.spec.shape == (4, 5, 3)
    batch = DataLoader(dataset.train, 5, seed=0, threads=0).next()
    assert batch["image"].shape == (5, 4, 5, 3) and batch["label"].dtype == np.int32
    chat = dataset_from_python([CHAT] * 20, Data(format="chat", seq_len=64))
    assert chat.dialogues and chat.spec.format == "chat"
    labels = dataset_from_python(
        [dict(text=t, label=i % 2) for i, t in enumerate(TEXTS)], Data(format="labels", seq_len=96)
    )
    assert labels.spec.class_names == ("0", "1")


@pytest.mark.parametrize(
    "data, words",
    [
        ({"image": IMAGES.astype(np.float32)}, ["image", "float32", "uint8"]),
        ({"image": IMAGES[0, 0]}, ["image", "shape"]),
        ({"image": [IMAGES[0], IMAGES[1, :2]]}, ["'image'", "image 1", "(2, 5, 3)"]),
        ({"image": IMAGES, "label": LABELS[:9]}, ["length", "9"]),
        ({"image": IMAGES, "label": LABELS / 2}, ["label", "float64"]),
        ({"picture": IMAGES}, ["picture", "image"]),
        ({"text": ["a", 3]}, ["'text'", "item 1", "3"]),
        ({"text": ["a", "\ud800"]}, ["'text'", "item 1", "Unicode"]),
        ({"text": ["a", "b"], "label": ["x", 0.5]}, ["'label'", "item 1", "0.5"]),
        ({"text": ["a", "b"], "label": ["x", None]}, ["'label'", "item 1", "None"]),
        ({"text": [" ", ""]}, ["'text'", "blank"]),
        ([dict(text="a", label="x"), dict(text="b")], ["item 1", "'label'"]),
        ([{"messages": [{"role": "robot", "content": "a"}]}], ["robot", "item 0"]),
        (CHAT, ["conversations"]),
        ({"words": [["a"]], "tags": [["X"]]}, ["'X'", "item 0"]),
        ([], ["empty"]),
        ({"text": []}, ["empty"]),
        (iter(()), ["empty"]),
        ([3], ["item 0", "int"]),
        ("text", ["str"]),
        (None, ["NoneType"]),
        ({"validation": TEXTS}, ["train"]),
        ({"train": TEXTS, "dev": TEXTS}, ["dev"]),
        ({"train": {"image": IMAGES}, "test": {"text": TEXTS}}, ["'test'", "'image'"]),
        (({"image": IMAGES}, {"image": IMAGES[:, :2]}), ["shape"]),
    ],
)
def test_unusable_settings_are_named(data, words):
    message = refusal(raw_dataset_from_python, data)
    assert [word for word in words if word not in message] == []


def test_a_run_notices_other_data():
    config = Data(seq_len=16)
    saved = dataset_from_python(TEXTS, config).fingerprint
    check_fingerprint(saved, dataset_from_python(iter(TEXTS), config))
    check_fingerprint("", dataset_from_python(TEXTS[:39], config))
    other = [*TEXTS[:-1], "another last text"]
    for data in (TEXTS[:39], other, TEXTS[::-1]):
        with pytest.raises(UserError, match="data="):
            check_fingerprint(saved, dataset_from_python(data, config))


def test_the_data_of_such_a_run_must_be_given_again():
    assert "data=" in refusal(sources.load_source, Data(source="in_memory"))


def test_a_pandas_frame():
    pandas = pytest.importorskip("pandas")
    raw = raw_dataset_from_python(pandas.DataFrame({"text": TEXTS, "label": ["a", "b"] * 20}))
    assert raw.class_names == ("a", "b") and examples(raw)[1] == {"text": TEXTS[1], "label": 1}


def test_a_hugging_face_data_set():
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_dict({"text": TEXTS, "label": [1, 0] * 20})
    train = train.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    raw = raw_dataset_from_python(datasets.DatasetDict(train=train, test=train.select(range(4))))
    assert raw.class_names == ("no", "yes") and set(raw.splits) == {"train", "test"}
    assert examples(raw, "test")[0] == {"text": TEXTS[0], "label": 1}
