"""The four families at a size that compiles in seconds."""

import flax.linen as nn
import jax
import numpy as np

import aigc_jax
from aigc_jax.core.conditions import Condition
from aigc_jax.core.request import SampleRequest
from aigc_jax.experiment import build
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.modalities.image.spec import ImageSpec
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizers import ByteTokenizer

FAMILIES = ("lm", "gan", "vae", "diffusion")
SEQ_LEN = 8
IMAGES = ImageSpec((8, 8, 1), tuple("0123456789"), levels=17)
TEXT = TextSpec(ByteTokenizer(), SEQ_LEN)

SECTIONS = {
    "lm": dict(
        data=dict(source="python_docs", seq_len=SEQ_LEN, batch_size=8),
        model=dict(name="transformer", layers=2, width=16, heads=2),
        objective=dict(name="lm"),
        sample=dict(num=2, max_new_tokens=5),
    ),
    "gan": dict(
        data=dict(source="digits", batch_size=8),
        model=dict(name="dcgan", latent=4, generator_channels=(8, 4), critic_channels=(4, 8)),
        objective=dict(name="gan", r1=1.0, r2=1.0),
        sample=dict(num=3),
    ),
    "vae": dict(
        data=dict(source="digits", batch_size=8),
        model=dict(name="conv", latent=3, channels=(4, 8), hidden=16),
        objective=dict(name="vae", importance_samples=4),
        sample=dict(num=3),
    ),
    "diffusion": dict(
        data=dict(source="digits", batch_size=8),
        model=dict(name="unet", channels=(4,), blocks=1, attention_levels=(), embedding=8, heads=2),
        objective=dict(name="diffusion", eval_draws=2),
        sample=dict(num=3, steps=3, sampler="ddim"),  # its walk calls the network once
    ),
}


def recipe(family, **changes):
    """A recipe of the family; `changes` are merged into its sections."""
    sections = dict(
        mesh="data=1",
        optim=dict(lr=1e-2, clip_norm=1.0, schedule="constant"),
        train=dict(steps=6, log_every=2),
        ema=dict(halflife=20.0),
        eval=dict(batch_size=8, batches=2, image=dict(fidelity=False)),
        checkpoint=dict(every=3),
    )
    for name, block in {**SECTIONS[family]}.items():
        sections[name] = {**sections.get(name, {}), **block}
    for name, block in changes.items():
        if isinstance(block, dict):
            # None takes a key out, for another model of the same family.
            merged = {**sections.get(name, {}), **block}
            block = {k: v for k, v in merged.items() if v is not None}
        sections[name] = block
    return aigc_jax.recipe(**sections)


def spec(family):
    return TEXT if family == "lm" else IMAGES


def make(family, **changes):
    """The parts of a run."""
    return build.build(build.parse_config(recipe(family, **changes)), spec(family))


def batch(family, size=8, seed=0):
    """A random batch with uneven weights, zeros among them."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.2, 2.0, size).astype(np.float32)
    weight[0] = 0
    if family == "lm":
        mask = rng.uniform(size=(size, SEQ_LEN)) < 0.7
        return {
            "tokens": rng.integers(0, 257, (size, SEQ_LEN + 1)).astype(np.int32),
            "weight": (weight[:, None] * mask).astype(np.float32),
        }
    return {
        "image": np.round(rng.integers(0, 17, (size, 8, 8, 1)) * (255 / 16)).astype(np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "weight": weight,
    }


def state(run, seed=0):
    return jax.jit(run.init)(np.int32(seed))


def params(run, family, scale=0.1):
    """Random parameters, so that every path of a model matters; nothing is compiled for them."""
    made = jax.eval_shape(run.objective.init, jax.random.key(0), batch(family))
    return random_like(nn.unbox(made)[0], scale)


def random_like(shapes, scale=0.1):
    """Arrays of these shapes: scales around one, kernels with outputs of the size of the inputs."""
    ones = jax.tree_util.tree_map_with_path(
        lambda path, s: np.full(s.shape, "'scale'" in str(path[-1]), s.dtype), shapes
    )
    spread = jax.tree.map(lambda x: x + fan_in(x), ones)
    return perturbed(spread, scale=scale)


def mutables(run, family):
    """Those of a fresh state."""
    return jax.jit(lambda: run.objective.init(jax.random.key(0), batch(family))[1])()


def fan_in(x, seed=0):
    """Kernels with outputs of about the size of their inputs."""
    if x.ndim < 2:
        return np.zeros_like(x)
    rng = np.random.default_rng(seed)
    return (rng.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1]))).astype(x.dtype)


def perturbed(tree, seed=1, scale=0.1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (np.asarray(x) + scale * rng.normal(size=x.shape)).astype(x.dtype), tree
    )


def request(options, num, label=None, **init):
    """A request for `num` samples, of the classes `label` if they are given."""
    return SampleRequest(options, np.arange(num), given(label), init)


def given(label=None, **others):
    """Conditions of these values, which every example has."""
    values = others if label is None else {"label": label, **others}
    return {name: Condition.of(value) for name, value in values.items()}


def draw(objective, params, mutables, options, num, seed=0, batch_size=256, **request):
    """Samples as `generate` draws them, with the request made here."""
    made = make_request(objective, options, num, **request)
    return generate(objective, params, mutables, made, seed, batch_size)
