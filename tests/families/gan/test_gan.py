"""GANs: spectral norm, adaptive augmentation, schedules, networks of any size, alarms, modes."""

import glob
import os

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from helpers.paths import CONFIGS
from sklearn.datasets import load_digits

import aigc_jax
from aigc_jax.core.conditions import Condition
from aigc_jax.core.config import Data, Optim
from aigc_jax.core.errors import UserError
from aigc_jax.core.metrics import Mean
from aigc_jax.core.modality import LEVELS
from aigc_jax.core.objective import HealthCheck, Objective
from aigc_jax.experiment import build
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.families.gan import critic_state, dcgan, mlp_gan, r3gan
from aigc_jax.families.gan.gan import GANConfig, GANSample
from aigc_jax.families.gan.metrics import diversity, score_metrics
from aigc_jax.families.registry import FAMILIES, Family
from aigc_jax.modalities import sources
from aigc_jax.modalities.image.metrics import mode_coverage
from aigc_jax.modalities.image.spec import ImageSpec
from aigc_jax.nn.padding import crop, fill
from aigc_jax.ops import convolution, spectral_norm
from aigc_jax.ops.schedules import cosine_schedule
from aigc_jax.training.health_checks import HealthMonitor, triggered_checks
from aigc_jax.training.metric_log import read_metrics
from aigc_jax.training.optimizers import make_optimizer
from aigc_jax.training.step import make_step

KEY = jax.random.key(0)
CLASSES = {"label": Condition.of(jnp.array([1, 3]))}
FOLDER = CONFIGS / "gan"


# Networks ------------------------------------------------------------------------------------

NETWORKS = {
    "mlp": (mlp_gan, mlp_gan.MLPGANConfig(5, (8, 16))),
    "dcgan": (dcgan, dcgan.DCGANConfig(5, (8, 4, 4), (4, 4, 8))),
    "dcgan28": (dcgan, dcgan.DCGANConfig(5, (8, 8, 4), (4, 8), 5, plain=True, strides=(1, 2, 2))),
    "dcgan64": (dcgan, dcgan.DCGANConfig(5, (8, 8, 4, 4), (4, 4, 8, 8), 5, plain=True)),
    "r3gan": (r3gan, r3gan.R3GANConfig(5, (8, 8, 4), 1, group_width=4)),
}
SIZES = [(28, 28, 1), (32, 32, 3), (64, 64, 3), (31, 45, 3)]
OTHER_RANKS = [(33, 2), (16, 17, 20, 1)]  # sound, video


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_any_size(name, classes):
    module, config = NETWORKS[name]
    # Kernels of five sizes are for images: a video of 16 frames is too short for strides of 2.
    for shape in SIZES if "6" in name else (*SIZES, *OTHER_RANKS):
        for dtype in (jnp.float32, jnp.bfloat16):
            generator = module.Generator(config, shape, classes, dtype)
            critic = module.Critic(config, classes, dtype)
            z, x = jnp.ones((2, 5)), jnp.ones((2, *shape))
            image, params = jax.eval_shape(generator.init_with_output, KEY, z, CLASSES)
            score, more = jax.eval_shape(critic.init_with_output, KEY, x, CLASSES)
            assert (image.shape, score.shape) == ((2, *shape), (2,))
            chex.assert_type(jax.tree.leaves((image, score, params, more)), jnp.float32)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "mlp"])
def test_images_too_small_for_a_network_are_named(name):
    module, config = NETWORKS[name]
    shape = (3, 3, 1) if "64" not in name else (9, 9, 1)
    for network in (module.Generator(config, shape, 0), module.Critic(config, 0)):
        given = jnp.ones((2, 5)) if hasattr(network, "shape") else jnp.ones((2, *shape))
        with pytest.raises(UserError, match=r"3×3 cannot be halved|9×9 cannot be halved"):
            jax.eval_shape(network.init, KEY, given)


def test_published_sizes():
    """The generator's dense layer and the images' sides, as in the papers and tutorials."""
    recipes = {"dcgan28": (28, 28, 1), "dcgan64": (64, 64, 3), "mlp": (28, 28, 1)}
    shapes = {}
    for name, shape in recipes.items():
        run = parts(f"{name}.py", ImageSpec(shape))
        shapes[name] = jax.tree.map(jnp.shape, run.state_shapes().params)
    assert shapes["dcgan28"]["generator"]["stem"]["kernel"] == (100, 7 * 7 * 256)
    assert shapes["dcgan28"]["critic"]["score"]["kernel"] == (7 * 7 * 128, 1)
    assert shapes["dcgan64"]["generator"]["stem"]["kernel"] == (100, 4 * 4 * 1024)
    assert shapes["mlp"]["generator"]["image"]["kernel"] == (512, 784)
    assert shapes["mlp"]["critic"]["hidden_0"]["kernel"] == (784, 512)


def test_r3gan_begins_as_its_skeleton():
    """Each block is the identity at first, and its kernels have fix-up's size."""
    config = r3gan.R3GANConfig(5, (64, 64), blocks=2)
    block = r3gan.Block(config, jnp.float32)
    x = jax.random.normal(KEY, (2, 4, 4, 64))
    y, variables = jax.jit(block.init_with_output)(KEY, x)
    np.testing.assert_array_equal(x, y)
    params = nn.unbox(variables["params"])
    for kernel, fan_in in (
        (params["grouped_kernel"], 9 * 16),
        (params["expand"]["Dense_0"]["kernel"], 64),
    ):
        expected = np.sqrt(2 / 1.04) * 4**-0.25 / np.sqrt(fan_in)
        np.testing.assert_allclose(kernel.std(), expected, rtol=0.05)
    with pytest.raises(UserError, match="group_width"):
        r3gan.R3GANConfig(channels=(20,), group_width=16)


@pytest.mark.slow
def test_grouped_convolution_and_resampling():
    x = jax.random.normal(KEY, (2, 6, 4, 8))
    kernel = jax.random.normal(KEY, (3, 3, 2, 16))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    np.testing.assert_allclose(convolution.grouped_convolution(x, kernel), expected, atol=1e-4)
    twice = convolution.upsample_linear(x)
    np.testing.assert_allclose(twice, jax.image.resize(x, (2, 12, 8, 8), "bilinear"), atol=1e-5)
    half = convolution.downsample_linear(x)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    taps = jnp.array([1, 3, 3, 1]) / 8
    by_hand = sum(
        taps[i] * taps[j] * padded[:, i : i + 5 : 2, j : j + 3 : 2]
        for i in range(4)
        for j in range(4)
    )
    np.testing.assert_allclose(half, by_hand, atol=1e-5)
    np.testing.assert_array_equal(crop(fill(x, (7, 7)), (6, 4)), x)


# Spectral norm -------------------------------------------------------------------------------


def test_spectral_norm_is_that_of_the_singular_values():
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": rng.normal(size=(3, 3, 4, 6)), "bias": np.ones(6)},
        "b": rng.normal(size=(5, 2)),
    }
    params = jax.tree.map(jnp.float32, params)
    vectors = spectral_norm.init_vectors(params, KEY)
    assert set(vectors) == {"a.kernel", "b"}
    for _ in range(30):
        vectors = spectral_norm.power_iteration(params, vectors)
    new = spectral_norm.spectral_normalize(params, vectors)
    for old, made in ((params["a"]["kernel"], new["a"]["kernel"]), (params["b"], new["b"])):
        size = np.linalg.svd(np.asarray(old).reshape(-1, old.shape[-1]), compute_uv=False)[0]
        np.testing.assert_allclose(made, old / size, rtol=1e-4)
    np.testing.assert_array_equal(new["a"]["bias"], 1)

    # The gradient: that of W / σ with σ's own, u vᵀ, by differences.
    def total(t):
        moved = {"b": params["b"] + t * jnp.ones((5, 2))}
        return jnp.sin(spectral_norm.spectral_normalize(moved, {"b": vectors["b"]})["b"]).sum()

    numeric = (total(1e-2) - total(-1e-2)) / 2e-2
    np.testing.assert_allclose(jax.grad(total)(0.0), numeric, rtol=1e-2)


def test_a_kernel_of_zeros_stays():
    params = {"kernel": jnp.zeros((3, 2))}
    vectors = spectral_norm.init_vectors(params, KEY)
    grad = jax.grad(lambda p: spectral_norm.spectral_normalize(p, vectors)["kernel"].sum())(params)
    np.testing.assert_array_equal(grad["kernel"], 1)


# What the critic remembers -------------------------------------------------------------------


def state_after(above, weight=8.0, **changes):
    state = critic_state.init_state({}, KEY, 0.5, False)
    sums = {"real": 6.0, "fake": 2.0, "above": above, "weight": weight}
    return {**state, "sums": jax.tree.map(jnp.float32, sums), "step": jnp.int32(3), **changes}


def test_the_probability_of_augmentation_follows_the_critic():
    """r = 2 · above / weight − 1 against its target; once per step, within its limits."""
    begin = jax.jit(lambda state, step: critic_state.begin_step(state, {}, step, 0.5, 0.1, 0.9))
    for above, expected in ((8.0, 0.6), (4.0, 0.4), (6.0, 0.5)):
        moved = begin(state_after(above), 4)
        np.testing.assert_allclose(moved["probability"], expected, rtol=1e-6)
        np.testing.assert_allclose(moved["decision_boundary"], 0.5)
        assert float(moved["sums"]["weight"]) == 0
        again = begin({**moved, "sums": state_after(0.0)["sums"]}, 4)
        assert again["probability"] == moved["probability"]
        assert float(again["sums"]["weight"]) == 8
    high, low = jnp.float32(0.85), jnp.float32(0.05)
    np.testing.assert_allclose(begin(state_after(8.0, probability=high), 4)["probability"], 0.9)
    assert float(begin(state_after(0.0, probability=low), 4)["probability"]) == 0
    nothing = begin(state_after(0.0, weight=0.0), 4)
    assert (float(nothing["probability"]), float(nothing["decision_boundary"])) == (0.5, 0)


def everything(**changes):
    """A run with all that a critic remembers."""
    objective = dict(
        spectral_norm=True,
        augment=("flip", "translate", "brightness"),
        ada_target=0.5,
        ada_steps=10,
        augment_start=0.3,
        critic_turns=2,
        gamma_start=5.0,
        burn_in_steps=4,
        **changes,
    )
    return tiny.make("gan", objective=objective)


@pytest.mark.slow
def test_microbatches_are_one_big_batch_for_a_critic_that_remembers():
    run = everything()
    state = tiny.state(run)
    state = state.replace(params=tiny.perturbed(state.params))
    optimizers = {p: optax.sgd(0.05) for p in state.params}
    state = state.replace(opt_state={p: optimizers[p].init(v) for p, v in state.params.items()})
    ends = []
    for n in (1, 4):
        step, end = jax.jit(make_step(run.objective, optimizers, accumulate=n)), state
        for seed in range(2):
            end, metrics = step(end, tiny.batch("gan", seed=seed))
        ends.append((end.params, end.mutables["critic"] | {"sums": 0}))
        assert float(metrics["critic/augment_probability"].value()) != pytest.approx(0.3)
    chex.assert_trees_all_close(*ends, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_evaluation_leaves_the_vectors_and_does_not_augment():
    """The score of a held-out image is that of the normalised critic, whatever the probability."""
    run = everything()
    params, batch = tiny.params(run, "gan"), tiny.batch("gan")
    state = critic_state.init_state(params["critic"], KEY, 1.0, True)
    key_B = jax.random.split(KEY, 8)
    found = jax.jit(run.objective.evaluate)(params, {"critic": state}, batch, key_B)
    critic = spectral_norm.spectral_normalize(params["critic"], state["vectors"])
    score_B = run.objective._score(
        critic, batch["image"] / 127.5 - 1, {"label": Condition.of(batch["label"])}
    )
    expected = np.average(score_B, weights=batch["weight"])
    np.testing.assert_allclose(found["score_real"].value(), expected, rtol=1e-3)


# Schedules -----------------------------------------------------------------------------------


def test_schedules_by_hand():
    gamma = cosine_schedule(2.0, 0.2, 100)
    values = [float(gamma(jnp.int32(s))) for s in (0, 50, 100, 500)]
    np.testing.assert_allclose(values, [2.0, 1.1, 0.2, 0.2], rtol=1e-5)
    assert cosine_schedule(2.0, 0.2, 0)(jnp.int32(0)) == 0.2
    b2 = cosine_schedule(0.9, 0.99, 10)
    np.testing.assert_allclose([b2(0), b2(5), b2(10), b2(99)], [0.9, 0.945, 0.99, 0.99], rtol=1e-6)
    _, lr = make_optimizer(Optim(lr=2e-4, final_lr_fraction=0.25, decay_steps=10), 100)
    np.testing.assert_allclose([lr(0), lr(5), lr(10), lr(99)], [2e-4, 1.25e-4, 5e-5, 5e-5])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_whose_b2_moves(name):
    """Against Adam written out; with b2_start = b2 it is Optax's own."""
    grads = np.random.default_rng(0).normal(size=(6, 3))
    given = dict(name=name, lr=0.1, schedule="constant", b1=0.5, b2=0.99, weight_decay=0.1)

    def run(turns=1, **changes):
        chain, _ = make_optimizer(Optim(**given, **changes), 4, turns)
        params = jnp.ones((3, 1))
        state = chain.init(params)
        for g in grads:
            updates, state = chain.update(jnp.float32(g)[:, None], state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params)[:, 0]

    np.testing.assert_allclose(run(b2_start=0.99), run(), rtol=1e-6)
    p, m, v = np.ones(3), 0, 0
    for t, g in enumerate(grads):
        step = t // 2  # two turns in each step
        b2 = 0.99 - 0.19 * (1 + np.cos(np.pi * min(step / 2, 1))) / 2
        g = g + 0.1 * p if name == "adam" else g
        m, v = 0.5 * m + 0.5 * g, b2 * v + (1 - b2) * g**2
        direction = m / (1 - 0.5 ** (t + 1)) / (np.sqrt(v / (1 - b2 ** (t + 1))) + 1e-8)
        p = p - 0.1 * (direction + (0.1 * p if name == "adamw" else 0))
    np.testing.assert_allclose(run(2, b2_start=0.8, b2_steps=2), p, rtol=1e-4)


# Health and alarms ---------------------------------------------------------------------------


def test_health_check_fires_after_n_records():
    alarm = HealthCheck("a", 0.2, 1.0, 3, "it is low")
    values = [0.1, 0.1, 0.5, 0.1, 0.1, 0.1, 0.1, None, 0.5, 2.0, 2.0, None, float("nan"), 2.0]
    records = [{"kind": "train", "step": i, "a": v} for i, v in enumerate(values)]
    watch = HealthMonitor([alarm])
    fired = [i for i, record in enumerate(records) if watch.check(record)]
    assert fired == [5, 13]
    # A run that goes on knows what was before; records of evaluations do not count.
    again = HealthMonitor([alarm], [{"kind": "eval", "a": 0.1}, *records[3:5]])
    assert again.check(records[5]) == [alarm] and not again.check(records[6])


def test_alarms_are_found_again_in_the_records():
    alarms = [
        HealthCheck("a", 0.2, 1.0, 1, "it is low"),
        HealthCheck("a", 0.0, 0.8, 1, "it is high"),
    ]
    records = [{"step": 1, "a": 0.5}, {"step": 2, "a": 0.9, "health_check": "a"}]
    records += [{"step": 3, "a": 0.1, "b": 9.0, "health_check": "a, b"}]
    assert [r[:2] for r in triggered_checks([], records)] == [(2, "a"), (3, "a"), (3, "b")]
    words = [r.message for r in triggered_checks(alarms, records)]
    assert words[:2] == ["it is high", "it is low"] and len(words) == 3


class Falling(Objective):
    """A number that falls by itself, and an alarm that knows how far it may."""

    turns = ("model",)
    health_checks = (HealthCheck("place", -1.5, 9.0, 2, "it has fallen too far: catch it"),)

    def init(self, rng, batch):
        return {"model": {"place": jnp.zeros((1, 1))}}, {}

    def loss(self, player, params, mutables, batch, key_B, step):
        place = params[player]["place"].sum()
        return Mean.of(place * batch["weight"]), ({"place": Mean.of(place)}, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        return {"loss": Mean.of(batch["weight"])}

    def sample(self, params, mutables, key_N, request):
        return jnp.zeros((key_N.shape[0], 8, 8, 1), jnp.uint8)


def test_health_warning_is_logged_once_and_recorded(tmp_path, capsys, monkeypatch):
    """Also when the run was interrupted between the records that set it off."""
    family = Family(GANConfig, GANSample, {"mlp": mlp_gan.MLPGANConfig},
                    lambda parts: Falling(), (LEVELS,))  # fmt: skip
    monkeypatch.setitem(FAMILIES._items, "falling", family)
    for steps in (3, 6):
        recipe = tiny.recipe("gan", model=dict(name="mlp", latent=None, generator_channels=None,
            critic_channels=None), objective=dict(name="falling"), ema=dict(halflife=0.0),
            optim=dict(name="sgd", lr=1.0, b1=0.0), train=dict(steps=steps, log_every=1),
        )  # fmt: skip
        aigc_jax.train(recipe, str(tmp_path / "run"))
    records = [r for r in read_metrics(str(tmp_path / "run")) if r["kind"] == "train"]
    assert [r["place"] for r in records] == [0, -1, -2, -3, -4, -5]
    failed = [(r["step"], r["health_check"]) for r in records if "health_check" in r]
    assert failed == [(4, "place")]
    assert triggered_checks(Falling.health_checks, records) == [
        (4, "place", "it has fallen too far: catch it")
    ]
    out = capsys.readouterr()
    assert (out.err + out.out).count("it has fallen too far") == 1


def test_diversity_and_accuracy_by_hand():
    weight = jnp.array([1.0, 3.0, 0.0])
    x, fake = jnp.zeros((3, 2, 2, 1)), jnp.array([1.0, 4.0, 9.0])[:, None, None, None]
    mean = diversity(x, fake * jnp.ones_like(x), jnp.full_like(x, 2.0), weight)
    np.testing.assert_allclose(mean.value(), (1 * 2 + 3 * 4) / (1 * 2 + 3 * 8))
    real, made = jnp.array([1.0, 3.0, 9.0]), jnp.array([2.5, 0.0, 9.0])
    found = {k: float(m.value()) for k, m in score_metrics(real, made, weight, 2.0).items()}
    assert found == dict(
        score_real=2.5, score_fake=0.625, pairwise_accuracy=0.75,
        accuracy_real=0.75, accuracy_fake=0.75, accuracy=0.75,
    )  # fmt: skip


def test_players_keys_differ_and_the_generator_shares_the_critics_latents():
    """Diversity is then free: XLA has the critic's images already."""
    small = dict(name="mlp", hidden=(4,), generator_channels=None, critic_channels=None)
    run = tiny.make("gan", model=small, objective=dict(critic_turns=2, r1=0.0, r2=0.0))
    state, batch, drawn = tiny.state(run), tiny.batch("gan"), []
    fake = run.objective._fake

    def watched(params, key_B, *conditions):
        keep = lambda data: drawn.append(np.asarray(data))  # noqa: E731
        jax.debug.callback(keep, jax.random.key_data(key_B), ordered=True)
        return fake(params, key_B, *conditions)

    run.objective._fake = watched
    jax.block_until_ready(jax.jit(make_step(run.objective, run.optimizers))(state, batch))
    jax.effects_barrier()
    first, second, own, others = drawn
    chex.assert_trees_all_equal(first, others)
    assert not any(np.array_equal(a, b) for a, b in ((first, second), (first, own), (second, own)))


def test_an_unknown_transformation_is_named():
    with pytest.raises(UserError, match="did you mean 'rotate'"):
        GANConfig(augment=("rotat",))


# Stacked digits ------------------------------------------------------------------------------


def test_stacked_digits_are_the_same_by_index_and_hold_out_digits():
    data, again = (sources.load_source(Data(source="stacked_digits")) for _ in range(2))
    assert data.spec.shape == (8, 8, 3) and data.spec.num_classes == 1000
    assert data.spec.class_names[427] == "427" and len(data.train) == 50_000
    images, labels = data.channel_images
    every = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    held_out = {im.tobytes() for im in every} - {im.tobytes() for im in images}
    for i in (0, 17, 49_999):
        one, two = data.train[i], again.train[i]
        np.testing.assert_array_equal(one["image"], two["image"])
        channels = [one["image"][..., c] for c in range(3)]
        at = [next(k for k in range(len(images)) if (images[k] == ch).all()) for ch in channels]
        assert int(one["label"]) == int("".join(str(labels[k]) for k in at))
    assert all(data.validation[5]["image"][..., c].tobytes() in held_out for c in range(3))
    assert (data.train[0]["image"] != data.validation[0]["image"]).any()


def test_modes_are_counted():
    count, kl = mode_coverage.count_modes(np.array([3, 3, 5, 7]), 8)
    assert count == 3
    np.testing.assert_allclose(kl, np.log(8) - 1.5 * np.log(2))
    data = sources.load_source(Data(source="stacked_digits"))
    images = np.stack([data.validation[i]["image"] for i in range(300)])
    labels = np.array([data.validation[i]["label"] for i in range(300)])
    found = mode_coverage.mode_coverage(data, images)
    assert abs(found["modes"] - len(set(labels))) < 12  # held-out digits, nearly all recognised
    assert found["modes_real_data"] > 230 and found["modes_kl_real_data"] > 0
    assert mode_coverage.mode_coverage(data, images[:1].repeat(300, 0))["modes"] == 1
    assert mode_coverage.mode_coverage(sources.load_source(Data(source="digits")), images) == {}


# Recipes -------------------------------------------------------------------------------------

SPECS = {
    "quickstart.py": tiny.IMAGES,
    "stacked_digits.py": ImageSpec((8, 8, 3), tuple(map(str, range(1000))), 17),
    "mlp.py": ImageSpec((28, 28, 1), tuple("0123456789")),
    "dcgan28.py": ImageSpec((28, 28, 1), tuple("0123456789")),
    "dcgan64.py": ImageSpec((64, 64, 3)),
    "r3gan_fashion.py": ImageSpec((28, 28, 1), tuple("0123456789")),
    "r3gan_fashion.py:gpu": ImageSpec((28, 28, 1), tuple("0123456789")),
    "r3gan_cifar10.py": ImageSpec((32, 32, 3), tuple("0123456789")),
}


def parts(name, spec=None, **changes):
    recipe = load_recipe(str(FOLDER / name))
    recipe.update_from_flattened_dict({"mesh": "data=1", **changes})
    return build.build(build.parse_config(recipe), spec or SPECS[name])


def test_every_recipe_can_be_built():
    files = {os.path.basename(f) for f in glob.glob(os.path.join(FOLDER, "*.py"))}
    assert files == {name.partition(":")[0] for name in SPECS}
    sizes = {}
    for name in SPECS:
        shapes = parts(name).state_shapes().params
        sizes[name] = {p: sum(x.size for x in jax.tree.leaves(t)) for p, t in shapes.items()}
    # By hand: 8 blocks of 768·1536·2 + 9·16·1536 + 2·1536, and what is around them.
    blocks = 8 * (768 * 1536 * 2 + 9 * 16 * 1536 + 2 * 1536) + 768 * 16 + 768 * 3
    generator, critic = blocks + 128 * 768 + 10 * 64, blocks + 768 * 768 + 10 * 768
    assert sizes["r3gan_cifar10.py"] == dict(generator=generator, critic=critic)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_a_step_of_every_recipe_can_be_traced(name):
    run = parts(name)
    before, batch = run.state_shapes(), run.spec.example_batch(4)
    after, metrics = jax.eval_shape(make_step(run.objective, run.optimizers), before, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        (after.params, after.mutables), (before.params, before.mutables)
    )
    assert {alarm.metric for alarm in run.objective.health_checks} <= set(metrics)


@pytest.mark.slow
def test_two_steps_of_the_large_recipe_made_small():
    small = {"model.channels": (16, 16), "data.batch_size": 4, "model.group_width": 8}
    run = parts("r3gan_cifar10.py", **small)
    state = run.step.put_state(jax.jit(run.init)(jnp.int32(0)))
    batch = run.spec.example_batch(4)
    batch["image"] = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    for _ in range(2):
        state, metrics = run.step(state, run.step.put_batch(batch))
        assert float(metrics["skipped"].value()) == 0
        assert np.isfinite(float(metrics["critic/loss"].value()))
