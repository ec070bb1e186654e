"""Data sets from anywhere: nothing in them is run or unpickled, and they stay in their folder."""

import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from helpers.audited import audit
from helpers.hostile import encoded, pixels, png, refusal
from PIL import Image

from aigc_jax.core.config import Data
from aigc_jax.core.modality import spec_from_json
from aigc_jax.data.loader import DataLoader
from aigc_jax.experiment import recipes
from aigc_jax.modalities import sources
from aigc_jax.modalities.prepare import prepare


def load(name, folder, **options):
    return sources.load_source(Data(source=f"tfds:{name}", data_dir=str(folder), **options))


# Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a" * 101, "a/../b", "a\\b", "a\0", "own/", "..", "~", "own\n"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    np.savez(tmp_path / "d.npz", images=pixels(3, 4, 4))
    assert "--name=" in refusal(prepare, f"npz:{tmp_path / 'd.npz'}", name, str(tmp_path / "data"))
    assert os.listdir(tmp_path) == ["d.npz"]


def test_a_name_that_is_a_link_to_nowhere_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", images=pixels(3, 4, 4))
    (tmp_path / "own").symlink_to(tmp_path / "elsewhere")
    assert "exists already" in refusal(prepare, f"npz:{tmp_path / 'd.npz'}", "own", str(tmp_path))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "name",
    ["..", "../own", "own/..", "own/../own", "/etc", "own//1.0.0", "own/", "/own", "own:", "own:1",
     "own:../1", "own:1.0.0/x", "own\\x", "own\0", "own\n", "a:own", "own/x=1", "own/.config",
     "own:1.0.0:1.0.0", ".", " own", "own ", "\ud800", "own/a/b", "https://x/own"],
)  # fmt: skip
def test_a_data_set_of_no_plain_name_is_refused(tmp_path, name):
    make_set(tmp_path / "data")
    shutil.copytree(tmp_path / "data" / "own", tmp_path / "own")
    assert "not the name of a data set" in refusal(load, name, tmp_path / "data")


def make_set(folder, count=9, name="own"):
    """A small data set of labelled images; returns the folder of its version."""
    buffer = io.BytesIO()
    np.savez(buffer, images=pixels(count, 4, 4), labels=np.arange(count) % 3)
    os.makedirs(folder, exist_ok=True)
    (folder / "d.npz").write_bytes(buffer.getvalue())
    made = prepare(f"npz:{folder / 'd.npz'}", name, str(folder))
    os.remove(folder / "d.npz")
    return made


def test_configs_and_versions(tmp_path):
    made = make_set(tmp_path)
    for name in ("own", "own:1.0.0", "own:1.*.*", "own:*.*.*"):
        assert len(load(name, tmp_path).validation) == 2
    for name in ("own:2.0.0", "own/x", "other"):
        assert "own" in refusal(load, name, tmp_path)
    shutil.copytree(made, tmp_path / "more" / "big-1" / "1.10.0")
    shutil.copytree(made, tmp_path / "more" / "big-1" / "1.9.0")
    for version in ("1.10.0", "1.9.0"):
        edit(tmp_path / "more" / "big-1" / version / "dataset_info.json", version=version)
    for name in ("more", "more/big-1", "more/big-1:1.9.0", "more:1.*.*"):
        assert len(load(name, tmp_path).validation) == 2
    shutil.copytree(tmp_path / "more" / "big-1", tmp_path / "more" / "small")
    assert "big-1, small" in refusal(load, "more", tmp_path)
    (tmp_path / "more" / ".config").mkdir()
    noted = tmp_path / "more" / ".config" / "metadata.json"
    noted.write_text(json.dumps({"default_config_name": "small"}))
    assert len(load("more", tmp_path).validation) == 2
    for wrong in ("../own", "../more/small", "..", "", None, [], "/etc"):
        noted.write_text(json.dumps({"default_config_name": wrong}))
        assert "big-1, small" in refusal(load, "more", tmp_path)


def edit(path, **values):
    """Changes values of a JSON file."""
    with open(path) as f:
        value = json.load(f)
    value.update(values)
    with open(path, "w") as f:
        json.dump(value, f)


# Data sets of others -------------------------------------------------------------------------

TRAP = "open('trap_was_sprung', 'w').close()\n"
FEATURE = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": "trap.Feature"},
        {"python_class_name": "trap.Feature"},
        {"type": "trap.Feature", "content": {}},
        {"pythonClassName": FEATURE,
         "featuresDict": {"features": {"image": {"pythonClassName": "trap.Feature"}}}},
        {"pythonClassName": FEATURE,
         "jsonFeature": {"json": json.dumps({"a": {"type": "trap.Feature", "content": {}}})}},
        {"type": FEATURE, "content": {"a": {"type": "trap.Feature", "content": {}}}},
    ],
    ids=["class", "proto name", "old form", "inner", "JSON in JSON", "old inner"],
)  # fmt: skip
def test_features_cannot_name_code_to_import(tmp_path, monkeypatch, features):
    made = make_set(tmp_path / "data")
    (tmp_path / "trap.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with open(os.path.join(made, "features.json"), "w") as f:
        json.dump(features, f)
    assert "trap.Feature" in refusal(load, "own", tmp_path / "data")
    assert "trap" not in sys.modules and not (tmp_path / "trap_was_sprung").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../own"},
        {"name": None},
        {"fileFormat": "tfrecord"},
        {"splits": [{"name": "../train", "shardLengths": ["9"]}]},
        {"splits": [{"shardLengths": ["9"]}]},
        {"splits": ["train"]},
        *({"splits": [{"name": "train", "shardLengths": ["9"], "filepathTemplate": template}]}
          for template in ("../{DATASET}", "/etc/passwd", "a/../../b", "..", "{SPLIT.__class__}",
                           "{SPLIT:>99999999999}", "a\0", 5, "//x", "a/")),
        {"splits": [{"name": "train", "shardLengths": ["1000000000000"]}]},
        {"splits": [{"name": "train", "shardLengths": ["8"]}]},
        {"splits": [{"name": "train", "shardLengths": ["9", "9"]}]},
        {"splits": [{"name": "train", "shardLengths": ["-1"]}]},
        {"splits": []},
        {"version": "x"},
        {"unknown": 1},
    ],
    ids=lambda values: json.dumps(values)[:60],
)  # fmt: skip
def test_a_description_that_lies_is_refused(tmp_path, values):
    made = make_set(tmp_path)
    edit(os.path.join(made, "dataset_info.json"), **values)
    assert "own" in refusal(load, "own", tmp_path)


@pytest.mark.parametrize(
    "name, template",
    [("own", "../elsewhere/records"), ("../elsewhere/records", "{DATASET}"), ("own", "x/../../a")],
)
def test_records_elsewhere_are_not_read(tmp_path, name, template):
    """They are whole, and lie where the description says."""
    made = make_set(tmp_path)
    for path in ("own/elsewhere/records", "own/1.0.0/x/y", "own/a"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(shard_of(made), tmp_path / path)
    split = {"name": "train", "shardLengths": ["9"], "filepathTemplate": template}
    edit(os.path.join(made, "dataset_info.json"), name=name, splits=[split])
    assert "own" in refusal(load, "own", tmp_path)


def test_records_in_a_folder_of_their_own_are_read(tmp_path):
    made = make_set(tmp_path)
    os.mkdir(os.path.join(made, "train"))
    os.rename(shard_of(made), os.path.join(made, "train", "a-0"))
    split = {"name": "train", "shardLengths": ["9"], "filepathTemplate": "{SPLIT}/a-{SHARD_INDEX}"}
    edit(os.path.join(made, "dataset_info.json"), splits=[split])
    os.rename(os.path.join(made, "train", "a-0"), os.path.join(made, "train", "a-00000"))
    assert len(load("own", tmp_path).validation) == 2


def feature(kind, **content):
    module = {
        "Image": "image_feature.Image",
        "Text": "text_feature.Text",
        "Tensor": "tensor_feature.Tensor",
        "ClassLabel": "class_label_feature.ClassLabel",
    }
    return {"pythonClassName": f"tensorflow_datasets.core.features.{module[kind]}", **content}


def tensor(*dimensions, **more):
    shape = {"dimensions": [str(n) for n in dimensions]}
    return feature("Tensor", tensor={"shape": shape, "dtype": "uint8", "encoding": "none", **more})


UNFIT = [
    {"image": tensor(-1, 4, 1)},
    {"image": tensor(0, 4, 1)},
    {"image": tensor(4, 4)},
    {"image": tensor(4, 4, 1, dtype="float32")},
    {"image": tensor(4, 4, 5)},
]


@pytest.mark.parametrize(
    "features",
    [
        {"image": tensor(5, 4, 1)},
        {"image": tensor(10**6, 10**6, 3)},
        *UNFIT,
        {"image": tensor(4, 4, 1, dtype="no type")},
        {"image": tensor(4, 4, 1, encoding="zlib")},
        {"image": tensor(4, 4, 1), "label": tensor(encoding="zlib")},
        {"image": feature("Image", image={"shape": tensor(4, 4, 1)["tensor"]["shape"]})},
        {"image": feature("Text", text={})},
        {"image": tensor(4, 4, 1), "label": feature("ClassLabel", classLabel={"numClasses": "2"})},
        {"image": tensor(4, 4, 1),
         "label": feature("ClassLabel", classLabel={"numClasses": str(10**12)})},
        {"text": feature("Text", text={})},
        {"other": tensor(4, 4, 1)},
    ],
    ids=lambda features: json.dumps(features)[-60:],
)  # fmt: skip
def test_features_that_lie_are_refused(tmp_path, features):
    made = make_set(tmp_path)
    os.remove(os.path.join(made, "label.labels.txt"))
    with open(os.path.join(made, "features.json"), "w") as f:
        json.dump({"pythonClassName": FEATURE, "featuresDict": {"features": features}}, f)

    def read_all():
        data = load("own", tmp_path)
        for part in (data.train, data.validation):
            for i in range(len(part)):
                part[i]

    message = refusal(read_all)
    assert "'own'" in message
    assert features not in UNFIT or "--image_size" in message
    assert ("zlib" in json.dumps(features)) == ("zlib" in message)


def test_a_record_that_is_damaged_stops_training_with_one_sentence(tmp_path):
    """It is read by another thread, when its turn comes."""
    made = make_set(tmp_path, 3000)
    data = load("own", tmp_path)
    with open(shard_of(made), "r+b") as f:
        f.seek(150_000)  # beyond what is read ahead
        f.write(bytes(20))
    batches = DataLoader(data.train, batch_size=4, seed=0)
    assert "cannot be read" in refusal(lambda: [batches.next() for _ in range(3000)])


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b"null", None])
def test_descriptions_that_are_none_are_refused(tmp_path, name, content):
    path = os.path.join(make_set(tmp_path), name)
    if content is None:
        os.remove(path)
        os.mkfifo(path)
    else:
        with open(path, "wb") as f:
            f.write(content)
    assert "own" in refusal(load, "own", tmp_path)


def shard_of(made):
    (shard,) = (f for f in os.listdir(made) if ".array_record" in f)
    return os.path.join(made, shard)


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "pipe", "middle"])
def test_damaged_records_are_refused(tmp_path, damage):
    shard = shard_of(make_set(tmp_path, 99))
    with open(shard, "rb") as f:
        data = bytearray(f.read())
    os.remove(shard)
    if damage == "middle":
        data[2000:2020] = bytes(20)
    if damage == "pipe":
        os.mkfifo(shard)
    elif damage != "gone":
        with open(shard, "wb") as f:
            f.write({"cut": data[:70000], "empty": b""}.get(damage, data))

    def read_all():
        data = load("own", tmp_path)
        for part in (data.train, data.validation):
            for i in range(len(part)):
                part[i]

    assert "own" in refusal(read_all)


def encoded_set(folder, images, shape):
    """A data set of encoded images, as TFDS's own ones are."""
    import tensorflow_datasets as tfds

    class Encoded(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None
        name = "encoded"

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=shape), "more": tfds.features.Text()}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                yield i, {"image": image, "more": b"\xff not decoded"}

    skip = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
    builder = Encoded(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=skip)


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1), ("RGBA", 4)])
def test_encoded_images_are_read(tmp_path, mode, channels):
    image = encoded("PNG", mode)
    encoded_set(tmp_path, [image] * 3, (4, 5, channels))
    data = load("encoded", tmp_path, validation_fraction=0.4)
    want = np.asarray(Image.open(io.BytesIO(image))).reshape(4, 5, channels)
    np.testing.assert_array_equal(data.train[0]["image"], want)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "image, reason",
    [
        (png(9000, 9000), "too large"),
        (png(4, 5), "4×5 pixels"),
        (b"no image", "not a readable image"),
        (encoded("EPS", "RGB"), "not a readable image"),
    ],
)
def test_encoded_images_that_lie_are_refused(tmp_path, image, reason):
    encoded_set(tmp_path, [image] * 3, (4, 5, 3))
    message = refusal(load, "encoded", tmp_path)
    assert "record 0 of the data set 'encoded'" in message and reason in message


# Descriptions in checkpoints -----------------------------------------------------------------

IMAGE_SPEC = {"modality": "image", "shape": [8, 8, 1], "class_names": ["a", "b"], "levels": 17}
TEXT_SPEC = {
    "modality": "text",
    "tokenizer": "char",
    "characters": ["a", "é"],
    "seq_len": 16,
    "format": "stream",
    "class_names": [],
}
TASK_SPEC = TEXT_SPEC | {"format": "labels", "class_names": ["bad", "good"]}


@pytest.mark.parametrize(
    "value", [IMAGE_SPEC, TEXT_SPEC, TASK_SPEC, TEXT_SPEC | {"tokenizer": "byte"}]
)
def test_a_description_of_data_is_read(value):
    back = spec_from_json(value).to_json()
    assert back == value | ({"characters": []} if value.get("tokenizer") == "byte" else {})


@pytest.mark.parametrize(
    "value",
    [None, [], {}, "image", {"modality": []},
     *(IMAGE_SPEC | {"shape": s}
       for s in (None, [8, 8], [8, 8, 0], [8, -8, -1], [8, 8, True], [8.0, 8, 1], "881",
                 [2**20, 2**20, 3], [10**30, 1, 1])),
     *(IMAGE_SPEC | {"class_names": c} for c in (None, "ab", [1], ["a", "a"], ["\ud800"])),
     *(IMAGE_SPEC | {"levels": n} for n in (0, 1, 257, True, "17", 16.0)),
     *(TEXT_SPEC | {"seq_len": n} for n in (0, -1, 2**25, True, 1.5, None, "16")),
     *(TEXT_SPEC | {"characters": c}
       for c in (None, "aé", ["a", "a"], ["ab"], [""], ["\ud800"], [1], [["a"]])),
     TEXT_SPEC | {"tokenizer": "word"}, TEXT_SPEC | {"tokenizer": []},
     *(TEXT_SPEC | {"format": f} for f in ("word", "labels", "tags", None, [], 1)),
     *(TASK_SPEC | {"class_names": c} for c in ([], None, "ab", ["a", "a"], [1], ["\ud800"])),
     TASK_SPEC | {"format": "chat"}],
    ids=lambda value: ascii(value)[-50:],
)  # fmt: skip
def test_a_description_of_data_that_lies_is_refused(value):
    assert "checkpoint" in refusal(spec_from_json, value)


def test_a_recipe_that_exits_is_refused(tmp_path):
    path = tmp_path / "two\nlines.py"
    path.write_text("import sys\nsys.exit('no\\nmore')\n")
    assert "SystemExit: no more" in refusal(recipes.load_recipe, str(path))


# Nothing unpickled ---------------------------------------------------------------------------

EVERY_KIND = """
import gzip, json, os
import numpy as np, safetensors.numpy
from PIL import Image
from aigc_jax.experiment import recipes
from aigc_jax.core.config import Data
from aigc_jax.modalities import sources
from aigc_jax.modalities.prepare import prepare

images, labels = np.zeros((9, 4, 4), np.uint8), np.arange(9) % 3
for kind in ("png", "jpg", "gif", "bmp", "webp", "tif"):
    os.makedirs(f"in/{kind}")
    Image.fromarray(images[0]).save(f"in/{kind}/a.{kind}")
np.savez("a.npz", images=images, labels=labels)
safetensors.numpy.save_file(dict(images=images, labels=labels), "a.safetensors")
os.mkdir("idx")
with gzip.open("idx/train-images-idx3-ubyte.gz", "wb") as f:
    f.write(bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (9, 4, 4)) + bytes(144))
with open("a.txt", "w") as f:
    f.write("some text, " * 99)
with open("a.jsonl", "w") as f:
    f.writelines(json.dumps({"text": f"line {i} " * 9}) + "\\n" for i in range(99))
with open("c.jsonl", "w") as f:
    talk = [dict(role=role, content="some text") for role in ("user", "assistant")]
    f.writelines(json.dumps({"messages": talk}) + "\\n" for i in range(99))
with open("a.conll", "w") as f:
    f.write("one\\tO\\ntwo\\tB-x\\n\\n" * 99)
made = dict(folder="in", npz="a.npz", safetensors="a.safetensors", idx="idx", text="a.txt",
            jsonl="a.jsonl", messages="c.jsonl", conll="a.conll")
forms = dict(messages="chat", conll="tags")
open("reading", "w").close()
for kind, path in made.items():
    prepare(f"{kind}:{path}", kind, "data")
    for source in (f"tfds:{kind}", f"{kind}:{path}"):
        form = forms.get(kind, "stream")
        data = sources.load_source(Data(source=source, data_dir="data", seq_len=16, format=form))
        [data.train[i] for i in range(3)] + [data.validation[0]]
"""


def test_nothing_is_unpickled_run_or_written_elsewhere(tmp_path):
    events = audit(EVERY_KIND, str(tmp_path))
    start = [e.name == "open" and e.what.startswith("('reading'") for e in events].index(True)
    reading = events[start + 1 :]
    assert [e for e in events if e.name.startswith("pickle")] == []
    assert [e for e in reading if e.name != "open"] == []
    outside = [
        e
        for e in reading
        # tempfile tries out its folder once in a process
        if not e.what.startswith(f"('{tmp_path}/data/") and not e.callers[0].endswith("tempfile.py")
    ]
    assert outside == []


@pytest.mark.parametrize(
    "script, name",
    [
        ("import numpy, pickle; pickle.loads(pickle.dumps(numpy.zeros(2)))", "pickle.find_class"),
        ("import numpy; numpy.save('a.npy', [None]); numpy.load('a.npy', allow_pickle=True)", ""),
        ("import marshal; marshal.loads(marshal.dumps(1))", "marshal.loads"),
        ("exec('1')", "exec"),
        ("import os; os.system('true')", "os.system"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("open('x', 'w').close()", "open"),
    ],
)
def test_the_audit_sees_what_it_should(tmp_path, script, name):
    names = [event.name for event in audit(script, str(tmp_path))]
    assert (name or "pickle.find_class") in names
