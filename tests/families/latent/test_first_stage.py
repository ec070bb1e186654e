"""Models in the latent space of a frozen autoencoder: diffusion, a transformer over its codes."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

import aigc_jax
from aigc_jax.core.config import Sample
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.modality import LEVELS
from aigc_jax.core.objective import Objective
from aigc_jax.data.shuffle import permutation
from aigc_jax.experiment import build
from aigc_jax.experiment.first_stage import load_first_stage, resolve_first_stage
from aigc_jax.families import registry
from aigc_jax.families.latent.continuous import ContinuousLatentObjective, any_in_blocks
from aigc_jax.families.latent.first_stage import PLAYER
from aigc_jax.modalities import sources
from aigc_jax.ops.convolution import downsample, upsample
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.training.step import make_step, prepare_batch


@dataclasses.dataclass(frozen=True)
class BlocksConfig:
    codes: int = option(0, low=0)  # 0: continuous


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


class Blocks(Objective):
    """An autoencoder by hand: the mean of each 4 × 4 block, times a learned gain."""

    turns, latent_shape, covered = ("model",), (2, 2, 1), (8, 8)

    def __init__(self, config):
        self.num_codes = config.codes

    def init(self, rng, batch):
        return {"model": {"gain": jnp.float32(3.0)}}, {"model": {"seen": jnp.float32(0)}}

    def loss(self, player, params, mutables, batch, key_B, step):
        seen = {"model": {"seen": mutables["model"]["seen"] + 1}}
        loss_B = jnp.full(batch["weight"].shape, (params["model"]["gain"] - 2) ** 2)
        return Mean.of(loss_B, batch["weight"]), ({}, seen)

    def evaluate(self, params, mutables, batch, key_B):
        return {"loss": self.loss("model", params, mutables, batch, key_B, 0)[0]}

    def encode(self, params, mutables, batch, key_B):
        mean = downsample(to_signed(batch["image"]), 4)
        if self.num_codes:
            return jnp.round((mean + 1) / 2 * (self.num_codes - 1)).astype(jnp.int32)
        return mean * params["model"]["gain"] + 5

    def decode(self, params, mutables, latent_N):
        if self.num_codes:
            return to_bytes(upsample(latent_N / (self.num_codes - 1) * 2 - 1, 4))
        return to_bytes(upsample((latent_N - 5) / params["model"]["gain"], 4))

    def sample(self, params, mutables, key_N, request):
        return jnp.zeros((len(key_N), 8, 8, 1), jnp.uint8)


@pytest.fixture
def blocks(monkeypatch, tmp_path):
    """Trains the autoencoder; (codes) → its workdir."""
    monkeypatch.setattr(registry.FAMILIES, "_items", dict(registry.FAMILIES))
    make = lambda parts: Blocks(parts.objective)  # noqa: E731
    family = registry.Family(BlocksConfig, Sample, {"none": Nothing}, make, (LEVELS,))
    registry.register("blocks", family)

    def train(codes=0):
        workdir = str(tmp_path / f"stage{codes}")
        config = tiny.recipe(
            "vae",
            model=dict(name="none", latent=None, channels=None, hidden=None),
            objective=dict(name="blocks", importance_samples=None, codes=codes),
            train=dict(steps=2),
        )
        aigc_jax.train(config, workdir, progress=False)
        return workdir

    return train


def behind(family, stage, **changes):
    data = tiny.SECTIONS["diffusion"]["data"]
    return tiny.recipe(family, data=data, first_stage=dict(workdir=stage), **changes)


def parts(config):
    """A run in the latent space of its first stage, its parameters, and a batch of images."""
    config = build.parse_config(config)
    dataset = sources.load_source(config.data)
    config = resolve_first_stage(config, dataset.spec)
    run = build.build(config, dataset.spec)
    state = run.init(jnp.int32(0))
    params = load_first_stage(
        config.first_stage.workdir, run.objective, state.params, dataset.train
    )
    some = permutation(len(dataset.train), 0)[:512]  # not the first: they may all be of one class
    images = np.stack([dataset.train[int(i)]["image"] for i in some])
    labels = np.array([dataset.train[int(i)]["label"] for i in some])
    return run, params, {"image": images, "label": labels, "weight": np.ones(512, np.float32)}


def test_latents_are_normalised_and_samples_are_images(blocks):
    run, params, batch = parts(behind("diffusion", blocks()))
    key_B = jax.random.split(jax.random.key(0), 512)
    latent = np.asarray(run.objective.prepare(params, {}, batch, key_B, 0)["image"])
    assert latent.shape == (512, 2, 2, 1)
    assert abs(latent.mean()) < 1e-5 and latent.std() == pytest.approx(0.5, rel=1e-4)
    # What the objective behind it draws comes out as if it had gone through the encoder.
    run.objective.objective.sample = lambda *_: latent[:4]
    images = run.objective.sample(params, {}, key_B[:4], tiny.request(run.config.sample, 4))
    np.testing.assert_array_equal(images, Blocks(BlocksConfig()).decode(
        params[PLAYER]["params"], {}, downsample(to_signed(batch["image"][:4]), 4)
        * params[PLAYER]["params"]["model"]["gain"] + 5))  # fmt: skip


def test_a_place_is_drawn_again_if_a_pixel_that_it_covers_is():
    stage = SimpleNamespace(
        latent_shape=(5, 6, 1),
        num_codes=0,
        covered=(20, 24),  # of which 17 × 23 pixels are the middle: they begin in the second row
        decode=None,
        encode=lambda params, mutables, batch, key_B: np.zeros((1, 5, 6, 1)),
    )
    inner = SimpleNamespace(turns=(), conditions={})
    latents = ContinuousLatentObjective(inner, stage, tiny.IMAGES)
    mask = np.zeros((1, 17, 23), bool)
    mask[0, 3, 0] = mask[0, 16, 22] = True
    request = tiny.request(None, 1, image=np.zeros((1, 17, 23, 3)), inpaint_mask=mask)
    frozen = {"params": {}, "mutables": {}, "shift": 0.0, "scale": 1.0}
    keys = jax.random.split(jax.random.key(0), 1)
    found = latents.encode_request({PLAYER: frozen}, keys, request).init["inpaint_mask"]
    np.testing.assert_array_equal(np.argwhere(found[0]), [[1, 0], [4, 5]])


def test_blocks_of_any_number_of_axes():
    mask = np.zeros((2, 4, 6, 2), bool)
    mask[1, 3, 2, 0] = True
    assert any_in_blocks(mask, (2, 3, 1)).shape == (2, 2, 3, 1)
    np.testing.assert_array_equal(np.argwhere(any_in_blocks(mask, (2, 3, 1))), [[1, 1, 1, 0]])
    np.testing.assert_array_equal(np.argwhere(any_in_blocks(mask.any((2, 3)), (2,))), [[1, 1]])


def test_the_batch_is_encoded_once_per_step_outside_every_gradient(blocks):
    """Whatever the number of turns; the same latents however the batch is cut."""
    run, params, batch = parts(behind("diffusion", blocks()))
    batch = {name: rows[:8] for name, rows in batch.items()}
    calls = []
    encode = run.objective.stage.encode

    def counted(params, mutables, batch, key_B):
        calls.append(type(batch["image"]))
        return encode(params, mutables, batch, key_B)

    run.objective.stage.encode = counted
    prepared = {}
    for number in (1, 4):
        args = run.objective, params, {}, batch, jax.random.key(0), jnp.int32(0), number
        prepared[number] = jax.jit(lambda args=args: prepare_batch(*args))()
    np.testing.assert_array_equal(prepared[1]["label"], batch["label"])
    np.testing.assert_allclose(prepared[1]["image"], prepared[4]["image"], atol=1e-6)
    calls.clear()
    state = run.init(jnp.int32(0)).replace(params=params)
    jax.eval_shape(make_step(run.objective, run.optimizers), state, batch)
    assert len(calls) == 1 and "JVP" not in calls[0].__name__


def test_an_image_is_inpainted_by_its_latents_and_keeps_its_pixels(blocks):
    run, params, batch = parts(behind("diffusion", blocks()))
    image, mask = batch["image"][:4], np.zeros((4, 8, 8), bool)
    mask[:, :3, 1] = True  # within the first of 2 × 2 places
    asked = []
    run.objective.objective.sample = lambda p, m, k, request: (
        asked.append(request), jnp.zeros((4, 2, 2, 1)))[1]  # fmt: skip
    key_B = jax.random.split(jax.random.key(0), 4)
    request = tiny.request(run.config.sample, 4, batch["label"][:4], image=image, inpaint_mask=mask)
    drawn = run.objective.sample(params, {}, key_B, request)
    np.testing.assert_array_equal(
        asked[0].init["inpaint_mask"], np.array([[[True, False], [False] * 2]] * 4)
    )
    inner = run.objective.encode_batch(params, {k: v[:4] for k, v in batch.items()}, key_B)
    np.testing.assert_allclose(asked[0].init["image"], inner["image"], atol=1e-5)
    np.testing.assert_array_equal(np.where(mask[..., None], image, drawn), image)
    assert (drawn != image).any()


@pytest.mark.parametrize(
    "family, codes", [pytest.param("diffusion", 0, marks=pytest.mark.slow), ("lm", 6)]
)
def test_a_run_behind_an_autoencoder_needs_only_its_own_workdir(blocks, tmp_path, family, codes):
    stage, workdir = blocks(codes), str(tmp_path / "run")
    sizes = dict(train=dict(steps=2), eval=dict(batches=1))
    config = behind(family, stage, **sizes, sample=dict(prompts=None, max_new_tokens=None))
    record = aigc_jax.train(config, workdir, progress=False)
    assert np.isfinite(record["loss"]) and "bits_per_byte" not in record
    gain = aigc_jax.restore(stage)[1].params["model"]["gain"]
    shutil.rmtree(stage)
    more = behind(family, stage, **{**sizes, "train": dict(steps=3)},
                  sample=dict(prompts=None, max_new_tokens=None))  # fmt: skip
    aigc_jax.train(more, workdir, progress=False)  # resumes without the first stage's workdir, too
    _, state, _ = aigc_jax.restore(workdir)
    frozen = state.params[PLAYER]
    assert frozen["params"]["model"]["gain"] == gain and frozen["mutables"]["model"]["seen"] == 2
    assert PLAYER not in state.ema and PLAYER not in state.opt_state
    images = aigc_jax.sample(workdir, num=3, label=4)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    assert np.isfinite(aigc_jax.evaluate(workdir)["loss"])


@pytest.mark.slow
def test_a_token_model_sees_the_class_and_then_the_codes(blocks):
    run, params, batch = parts(behind("lm", blocks(6)))
    key_B = jax.random.split(jax.random.key(0), 512)
    inner = run.objective.prepare(params, {}, batch, key_B, 0)
    assert inner["tokens"].shape == (512, 5) and inner["weight"].shape == (512, 4)
    np.testing.assert_array_equal(inner["tokens"][:, 0], 6 + batch["label"])
    shades = np.round(batch["image"].reshape(512, 2, 4, 2, 4).mean((2, 4)) / 255 * 5)
    np.testing.assert_array_equal(inner["tokens"][:, 1:], shades.reshape(512, 4))
    tokens = inner["tokens"][:3, 1:]
    run.objective.objective.sample = lambda p, m, k, request: (
        seen.append(request.init["tokens"]), tokens)[1]  # fmt: skip
    seen = []
    request = tiny.request(run.config.sample, 3, jnp.array([7, 0, 2]))
    images = run.objective.sample(params, {}, key_B[:3], request)
    assert [int(p[0]) for p in seen[0]] == [13, 6, 8]
    np.testing.assert_array_equal(
        images[:, ::4, ::4, 0], to_bytes(tokens.reshape(3, 2, 2) / 2.5 - 1)
    )


def test_the_config_keeps_the_first_stage(blocks):
    run, _, _ = parts(behind("diffusion", blocks()))
    again = build.parse_config(run.config.raw)
    assert again == run.config and again.first_stage.config["objective"]["name"] == "blocks"
    assert "stage" not in run.spec.to_json()
    with pytest.raises(UserError, match=r"first_stage\.config"):
        build.parse_config({**run.config.raw, "first_stage": dict(config=3)})


def test_unsuitable_first_stage_is_rejected(blocks, tmp_path):
    continuous, codes = blocks(), blocks(6)
    with pytest.raises(UserError, match=r"first_stage\.workdir"):
        aigc_jax.train(behind("gan", continuous), str(tmp_path / "a"), progress=False)
    with pytest.raises(UserError, match="models arrays of levels"):
        aigc_jax.train(behind("diffusion", codes), str(tmp_path / "b"), progress=False)
    sample = dict(prompts=None, max_new_tokens=None)
    with pytest.raises(UserError, match="one after the other"):
        masked = behind("lm", codes, objective=dict(name="masked_lm"), sample=sample,
                        model=dict(causal=False))  # fmt: skip
        aigc_jax.train(masked, str(tmp_path / "m"), progress=False)
    gan = str(tmp_path / "gan")
    aigc_jax.train(tiny.recipe("gan", train=dict(steps=1)), gan, progress=False)
    with pytest.raises(UserError, match="not the run of an autoencoder"):
        aigc_jax.train(behind("diffusion", gan), str(tmp_path / "c"), progress=False)
    with pytest.raises(UserError, match="holds no checkpoint"):
        aigc_jax.train(behind("diffusion", str(tmp_path)), str(tmp_path / "d"), progress=False)
