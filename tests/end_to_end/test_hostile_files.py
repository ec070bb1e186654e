"""Files, flags and descriptions that are damaged or lie: success or one sentence, never a crash.

Every case is drawn by hypothesis. The default run draws a few, always the same ones; the slow run
draws 10,000 of each kind, or as many as AIGC_FUZZ_CASES says, and prints its seed.
"""

import datetime
import functools
import os
import random
import resource
import sys
import tempfile

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers import hostile
from hypothesis import HealthCheck, given, seed, settings

from aigc_jax.cli import main
from aigc_jax.core import config, workdir
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import spec_from_json
from aigc_jax.core.safetensors_file import read_safetensors_file
from aigc_jax.experiment import build
from aigc_jax.modalities import prepare, readers, sources

FEW, MANY = 60, int(os.environ.get("AIGC_FUZZ_CASES", "10000"))
LONGEST = 2000  # characters of a message
MOST_MEMORY = 1 << 20  # kB that the process may grow by


def reads(source, check, **options):
    """A property: the file is read, or refused; what is read passes `check`."""

    def holds(data, folder):
        path = os.path.join(folder, source.partition(":")[2])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)
        kind = source.partition(":")[0]
        named = {"folder": os.path.dirname(path), "idx": os.path.dirname(path)}.get(kind, path)
        content = readers.read_files(f"{kind}:{named}", **options)
        for examples in content.splits.values():
            for example in examples:
                check(example(), content)

    return holds


def is_image(example, content):
    assert example["image"].shape == content.image_shape
    assert example["image"].dtype == np.uint8
    assert 0 <= example.get("label", 0) < max(len(content.class_names), 1)


def is_text(example, content):
    assert example["text"].strip() and example["text"].encode("utf-8")
    assert 0 <= example.get("label", 0) < max(len(content.class_names), 1)


def is_chat(example, content):
    for message in example["messages"]:
        assert (
            message.keys() == {"role", "content"} and message["content"].encode("utf-8") is not None
        )


def is_tagged(example, content):
    words, tags = example["words"], example["tags"]
    assert len(words) == len(tags) > 0 and all(words)
    assert all(tag == "O" or tag[:2] in ("B-", "I-") for tag in tags)


def overridden(words, folder):
    """What `aigc train` does with its words before it trains."""
    path = os.path.join(folder, "recipe.py")
    with open(path, "w") as f:
        f.write(RECIPE)
    argv = ["aigc", "train", f"--config={path}", "--workdir=w", *words]
    before = sys.argv
    sys.argv = argv  # the config flag looks for overrides there
    try:
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            main.parse_flags(argv)
            build.parse_config(flags.FLAGS.config)
    except SystemExit as e:  # --help
        assert e.code == 0
    finally:
        sys.argv = before
        flags.FLAGS.mark_as_parsed()


RECIPE = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict(dict(
        seed=0,
        data=dict(source="digits", batch_size=64, validation_fraction=0.5),
        model=dict(name="mlp", latent=20, hidden=(400,)),
        objective=dict(name="vae"),
        optim=dict(lr=1e-3, name="adamw"),
        eval=dict(image=dict(fidelity=True)),
        mesh="data=-1",
    ))
"""
KEYS = ["seed", "mesh", "data", "data.source", "data.batch_size", "data.validation_fraction",
        "model.name", "model.hidden", "objective.name", "optim.lr",
        "eval.image.fidelity"]  # fmt: skip


def described(value, folder):
    """A spec from a checkpoint; what is taken can be used."""
    taken = spec_from_json(value)
    assert spec_from_json(taken.to_json()).to_json() == taken.to_json()
    if taken.modality == "text":
        assert taken.tokenizer.decode(taken.tokenizer.encode("")) == ""
        assert len(taken.tokenizer.byte_lengths()) == taken.tokenizer.size


def configured(data, folder):
    """A workdir's config.json."""
    with open(os.path.join(folder, workdir.CONFIG), "wb") as f:
        f.write(data)
    config.differences(build.parse_config(workdir.read_config(folder)).raw, PLAIN)


def loaded(data, folder):
    path = os.path.join(folder, "x.safetensors")
    with open(path, "wb") as f:
        f.write(data)
    assert all(isinstance(array, np.ndarray) for array in read_safetensors_file(path).values())


INFO = {
    "name": "own",
    "version": "1.0.0",
    "fileFormat": "array_record",
    "moduleName": "aigc_jax.modalities.prepare",
    "splits": [
        {
            "name": "train",
            "numBytes": "6540",
            "shardLengths": ["9"],
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
    ],
}
MODULE = "tensorflow_datasets.core.features"
FEATURES = {
    "pythonClassName": f"{MODULE}.features_dict.FeaturesDict",
    "featuresDict": {
        "features": {
            "image": {
                "pythonClassName": f"{MODULE}.tensor_feature.Tensor",
                "tensor": {
                    "dtype": "uint8",
                    "encoding": "none",
                    "shape": {"dimensions": ["4", "4", "1"]},
                },
            },
            "label": {
                "pythonClassName": f"{MODULE}.class_label_feature.ClassLabel",
                "classLabel": {"numClasses": "3"},
            },
        }
    },
}


@functools.cache
def records():
    """The bytes of a shard of 9 images."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/d.npz", images=np.zeros((9, 4, 4), np.uint8), labels=np.arange(9) % 3)
        made = prepare.prepare(f"npz:{folder}/d.npz", "own", folder)
        with open(f"{made}/own-train.array_record-00000-of-00001", "rb") as f:
            return f.read()


def data_set(name):
    """A property: a data set in TFDS form, of which the file `name` is the case."""

    def holds(data, folder):
        made = os.path.join(folder, "own", "1.0.0")
        os.makedirs(made, exist_ok=True)
        good = {
            "dataset_info.json": hostile.json_bytes(INFO),
            "features.json": hostile.json_bytes(FEATURES),
            "label.labels.txt": b"a\nb\nc\n",
            "own-train.array_record-00000-of-00001": records(),
        }
        for file, content in {**good, name: data}.items():
            with open(os.path.join(made, file), "wb") as f:
                f.write(content)
        loaded = sources.load_source(config.Data(source="tfds:own", data_dir=folder, seq_len=1))
        assert len(loaded.train) + len(loaded.validation) == 9
        for i in range(len(loaded.train)):
            assert loaded.train[i].keys() <= {"image", "label", "weight", "tokens"}

    return holds


def described_by(seed):
    """A strategy of JSON files."""
    whole = hostile.json_bytes(seed)
    return hostile.st.one_of(
        hostile.altered([seed]).map(hostile.json_bytes),
        hostile.altered([seed]).map(hostile.json_bytes),
        hostile.files(whole, b"[" * 5000, b"9" * 5000),
    )


PLAIN = build.parse_config(
    dict(model=dict(name="mlp", hidden=(4,)), objective=dict(name="vae"))
).raw
FUZZED = {
    "images": (hostile.images(), reads("folder:in/a.png", is_image)),
    "resized images": (hostile.images(), reads("folder:in/a.gif", is_image, image_size=3)),
    "text": (hostile.texts(), reads("text:in/a.txt", is_text)),
    "jsonl": (hostile.json_lines(), reads("jsonl:in/a.jsonl", is_text)),
    "messages": (hostile.conversations(), reads("messages:in/a.jsonl", is_chat)),
    "conll": (hostile.tagged_words(), reads("conll:in/a.conll", is_tagged)),
    "idx": (hostile.idx_files(), reads("idx:in/train-images-idx3-ubyte", is_image)),
    "idx.gz": (hostile.gzipped_files(), reads("idx:in/train-images-idx3-ubyte.gz", is_image)),
    "npz": (hostile.npz_files(), reads("npz:in/a.npz", is_image)),
    "safetensors": (hostile.safetensors_files(), reads("safetensors:in/a", is_image)),
    "tensors": (hostile.safetensors_files(), loaded),
    "overrides": (hostile.overrides(KEYS), overridden),
    "specs": (hostile.specs(), described),
    "config.json": (described_by(PLAIN), configured),
    "dataset_info.json": (described_by(INFO), data_set("dataset_info.json")),
    "features.json": (described_by(FEATURES), data_set("features.json")),
    "labels": (hostile.files(b"a\nb\nc\n", b"a\n"), data_set("label.labels.txt")),
    "records": (
        hostile.st.deferred(lambda: hostile.damaged([records()])),
        data_set("own-train.array_record-00000-of-00001"),
    ),
}


def refused_or_fine(holds, case, folder):
    """The property of all of them."""
    try:
        holds(case, str(folder))
    except UserError as e:
        message = str(e)
        assert message and message.isprintable() and len(message) <= LONGEST, ascii(message)


def fuzz(kind, folder, cases, start=None):
    """Draws cases; always the same ones without `start`."""
    strategy, holds = FUZZED[kind]

    @settings(
        max_examples=cases,
        derandomize=start is None,
        database=None,
        deadline=datetime.timedelta(seconds=20),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(strategy)
    def run(case):
        refused_or_fine(holds, case, folder)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (run if start is None else seed(start)(run))()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


@pytest.mark.parametrize("kind", FUZZED)
def test_a_few_hostile_inputs(tmp_path, kind):
    fuzz(kind, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FUZZED)
def test_many_hostile_inputs(tmp_path, kind):
    start = random.SystemRandom().randrange(2**32)
    print(f"{kind}: {MANY} cases from the seed {start}")
    fuzz(kind, tmp_path, MANY, start)
