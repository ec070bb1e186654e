"""Recipes: what is filled in, what is refused, and what two of them differ in."""

import copy
import dataclasses
import json

import ml_collections
import pytest

import aigc_jax
from aigc_jax.core import config
from aigc_jax.core.config import Data, Ema, Optim, Train, differences
from aigc_jax.core.errors import UserError
from aigc_jax.experiment import build
from aigc_jax.experiment.eval_options import eval_section
from aigc_jax.families.vae.mlp_autoencoder import MLPConfig
from aigc_jax.families.vae.vae import VAEConfig, VAESample

FAMILIES = {
    "lm": dict(objective=dict(name="lm"), model=dict(name="transformer")),
    "gan": dict(objective=dict(name="gan"), model=dict(name="dcgan")),
    "vae": dict(objective=dict(name="vae"), model=dict(name="mlp")),
    "diffusion": dict(objective=dict(name="diffusion"), model=dict(name="unet")),
}


def sections(family="vae", **changes):
    """A family's smallest recipe with some sections changed; mappings are merged."""
    merged = copy.deepcopy(FAMILIES[family])
    for name, block in changes.items():
        merge = isinstance(block, dict) and name in merged
        merged[name] = {**merged[name], **block} if merge else block
    return merged


def parse(family="vae", **changes):
    return build.parse_config(sections(family, **changes))


def nested(path, value):
    """`nested("a.b", 1)` is `{"a": {"b": 1}}`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def refusal(family="vae", **changes):
    """The one sentence with which a recipe is refused."""
    with pytest.raises(UserError) as caught:
        parse(family, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_filled_in():
    c = parse()
    assert (c.seed, c.mesh) == (0, "data=-1")
    assert (c.data, c.train, c.ema) == (Data(), Train(), Ema())
    assert (c.eval, c.checkpoint) == (eval_section()(), config.Checkpoint())
    assert (c.model, c.objective, c.sample) == (MLPConfig(), VAEConfig(), VAESample())
    assert c.optim_of("whoever plays") == Optim()


def test_given_values_replace_defaults_and_only_those():
    c = parse(data=dict(batch_size=8), model=dict(latent=3), seed=5, mesh="data=2")
    assert c.data == dataclasses.replace(Data(), batch_size=8)
    assert c.model == MLPConfig(latent=3)
    assert (c.seed, c.mesh) == (5, "data=2")


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_writes_out_every_field(family):
    c = parse(family)
    for name in ("data", "model", "objective", "train", "ema", "eval", "sample", "checkpoint"):
        fields = {f.name for f in dataclasses.fields(getattr(c, name))}
        assert fields == c.raw[name].keys() - {"name"}
    assert c.raw["objective"]["name"] == family
    assert c.raw["model"]["name"] == FAMILIES[family]["model"]["name"]
    assert c.raw["optim"] == dataclasses.asdict(Optim())


@pytest.mark.parametrize(
    "path, value",
    [
        ("data.batch_size", "8"),
        ("data.batch_size", 8.0),
        ("data.batch_size", True),
        ("data.batch_size", None),
        ("data.source", 3),
        ("data.source", ("digits",)),
        ("data.validation_fraction", "0.2"),
        ("data.validation_fraction", False),
        ("train.steps", 1.5),
        ("eval.image.fidelity", 1),
        ("eval.image.fidelity", "true"),
        ("optim.lr", "fast"),
        ("optim.lr", True),
        ("optim.name", 1),
        ("model.latent", [3]),
        ("model.conditional", 0),
        ("sample.temperature", "warm"),
        ("seed", True),
        ("seed", 1.0),
        ("mesh", -1),
    ],
)
def test_a_wrong_type_is_refused_by_its_full_name(path, value):
    message = refusal(**nested(path, value))
    assert message.startswith(f"{path} must be of type ")
    assert repr(value) in message


@pytest.mark.parametrize("given", [1, 0, 3])
def test_an_int_is_taken_for_a_float(given):
    lr = parse(optim=dict(lr=given)).optim_of("model").lr
    assert lr == given and type(lr) is float


@pytest.mark.parametrize(
    "path, value, bound",
    [
        ("data.batch_size", 0, "at least 1"),
        ("data.validation_fraction", 0.95, "at most 0.9"),
        ("data.validation_fraction", -0.1, "at least 0"),
        ("data.threads", -1, "at least 0"),
        ("train.steps", -1, "at least 0"),
        ("train.accumulate", 0, "at least 1"),
        ("optim.lr", -1e-3, "at least 0"),
        ("optim.lr", float("nan"), "at least 0"),
        ("optim.b1", 1.5, "at most 1"),
        ("ema.halflife", -1, "at least 0"),
        ("checkpoint.keep", 0, "at least 1"),
        ("sample.num", 0, "at least 1"),
        ("model.latent", 0, "at least 1"),
        ("model.hidden", (5, 0), "at least 1"),
        ("objective.importance_samples", 0, "at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused(path, value, bound):
    message = refusal(**nested(path, value))
    assert message.startswith(f"{path} must be {bound}")


@pytest.mark.parametrize(
    "path, value", [("data.batch_size", 1), ("optim.b1", 1.0), ("data.validation_fraction", 0.9)]
)
def test_a_value_on_the_edge_is_taken(path, value):
    section, _, key = path.partition(".")
    assert parse(**nested(path, value)).raw[section][key] == value


@pytest.mark.parametrize("path, value", [("seed", -1), ("seed", 2**31), ("data.split_seed", -1)])
def test_a_seed_that_no_generator_takes_is_refused(path, value):
    assert path in refusal(**nested(path, value))


@pytest.mark.parametrize(
    "path, value, choices",
    [
        ("data.format", "word", ("stream", "documents", "chat", "labels", "tags")),
        ("optim.name", "rmsprop", ("adamw", "sgd", "muon")),
        ("optim.schedule", "step", ("constant", "cosine", "wsd")),
        ("train.parallel_mode", "xla", ("jit", "pmap")),
        ("train.compute_dtype", "float16", ("float32", "bfloat16")),
        ("objective.likelihood", "laplace", ("bernoulli", "gaussian")),
    ],
)
def test_a_value_that_is_no_choice_is_refused_with_the_choices(path, value, choices):
    message = refusal(**nested(path, value))
    assert message.startswith(f"{path} must be one of ")
    assert repr(value) in message
    assert all(choice in message for choice in choices)


@pytest.mark.parametrize(
    "path, nearest",
    [
        ("trian", "train"),
        ("data.batchsize", "batch_size"),
        ("data.seqlen", "seq_len"),
        ("train.step", "steps"),
        ("optim.learning_rate", ""),
        ("optim.weight_decy", "weight_decay"),
        ("model.latnt", "latent"),
        ("objective.importance_sample", "importance_samples"),
        ("sample.temprature", "temperature"),
        ("sample.top_k", ""),  # another family's option
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(path, nearest):
    message = refusal(**nested(path, 1))
    assert message.startswith(f"the config has no key '{path}': ")
    assert (f"did you mean '{nearest}'?" if nearest else "known are ") in message


@pytest.mark.parametrize("section", ["data", "train", "ema", "eval", "sample", "checkpoint"])
def test_a_name_is_an_unknown_key_where_nothing_is_chosen_by_name(section):
    assert f"'{section}.name'" in refusal(**{section: dict(name="digits")})


@pytest.mark.parametrize("section", ["data", "train", "model", "objective", "sample", "optim"])
@pytest.mark.parametrize("value", [3, "digits", None, [1, 2]])
def test_a_section_that_is_no_mapping_is_refused(section, value):
    assert section in refusal(**{section: value})


@pytest.mark.parametrize(
    "section, name, nearest",
    [("objective", "diffuson", "diffusion"), ("model", "mpl", "mlp"), ("objective", None, "vae")],
)
def test_an_unknown_registry_name_is_refused(section, name, nearest):
    message = refusal(**{section: dict(name=name)})
    assert f"{section}.name" in message and str(name) in message and nearest in message


def test_a_model_of_another_family_is_refused():
    message = refusal(model=dict(name="unet"))
    assert "model.name" in message and "'unet'" in message and "hierarchical_vae" in message


def test_model_constraints_are_checked():
    message = refusal("lm", model=dict(width=30, heads=4))
    assert "model.width=30" in message and "model.heads=4" in message


@pytest.mark.parametrize("given", [(5, 7), [5, 7], (5,), ()])
def test_tuples_may_be_lists_and_are_tuples_in_the_view_and_lists_in_raw(given):
    c = parse(model=dict(hidden=given))
    assert c.model.hidden == tuple(given)
    assert c.raw["model"]["hidden"] == list(given)


@pytest.mark.parametrize(
    "value, where",
    [
        (5, "model.hidden must be a tuple"),
        ("5", "model.hidden must be a tuple"),
        ((5, "x"), "model.hidden[1]"),
        ((5, 2.0), "model.hidden[1]"),
        ((True,), "model.hidden[0]"),
    ],
)
def test_a_wrong_tuple_is_refused(value, where):
    assert refusal(model=dict(hidden=value)).startswith(where)


def test_one_optimizer_block_is_for_every_player():
    c = parse("gan", optim=dict(name="sgd", lr=0.5))
    assert c.optim_of("critic") == c.optim_of("generator") == Optim(name="sgd", lr=0.5)
    assert c.raw["optim"]["lr"] == 0.5


def test_optimizer_blocks_per_player():
    c = parse("gan", optim=dict(critic=dict(lr=1), generator=dict(lr=2, name="lion")))
    assert c.optim_of("critic") == Optim(lr=1.0)
    assert c.optim_of("generator") == Optim(name="lion", lr=2.0)
    assert c.raw["optim"].keys() == {"critic", "generator"}


def test_a_player_without_a_block_is_named():
    c = parse("gan", optim=dict(critic=dict(lr=1)))
    with pytest.raises(UserError, match=r"critic.*'generator'.*optim\.generator"):
        c.optim_of("generator")


@pytest.mark.parametrize(
    "optim, where",
    [
        (dict(critic=dict(lrr=1)), "'optim.critic.lrr'"),
        (dict(critic=dict(lr="x")), "optim.critic.lr"),
        (dict(critic=dict(lr=1), lr=2), "'optim.critic'"),
    ],
)
def test_a_mistake_in_a_players_block_is_named_in_full(optim, where):
    assert where in refusal("gan", optim=optim)


ROUND_TRIPS = {
    **{family: dict(family=family) for family in FAMILIES},
    "tuples": dict(family="vae", model=dict(hidden=[30, 20, 10])),
    "unet tuples": dict(family="diffusion", model=dict(channels=(8, 16), attention_levels=())),
    "players": dict(family="gan", optim=dict(critic=dict(lr=1), generator=dict(b1=0))),
    "numbers": dict(family="vae", optim=dict(lr=1), ema=dict(halflife=500), seed=3),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_recipe_round_trip(name):
    """A recipe, its parsed form and what JSON makes of it are one config."""
    given = sections(**ROUND_TRIPS[name])
    recipe = build.recipe(**given)
    assert isinstance(recipe, ml_collections.ConfigDict)
    raw = build.parse_config(recipe).raw
    assert raw == build.parse_config(given).raw
    assert json.loads(json.dumps(raw)) == raw
    again = build.parse_config(json.loads(json.dumps(raw)))
    assert again == build.parse_config(given)
    assert differences(raw, build.recipe(**raw).to_dict()) == []


def test_recipe_has_every_key_so_that_a_flag_can_change_it():
    recipe = build.recipe(**sections(model=dict(hidden=[7])))
    assert recipe.eval.batch_size == config.Eval().batch_size
    assert recipe.model.hidden == (7,)  # a tuple: a flag cannot change a list
    with recipe.unlocked():
        recipe.train.steps = 11
    assert build.parse_config(recipe).train.steps == 11


def test_recipe_is_what_the_package_exports_and_refuses_mistakes():
    with pytest.raises(UserError, match=r"'data\.batchsize'"):
        aigc_jax.recipe(**sections(data=dict(batchsize=1)))


def test_parsing_leaves_the_recipe_as_it_was():
    given = sections(model=dict(hidden=[5]))
    before = copy.deepcopy(given)
    build.parse_config(given)
    assert given == before


def test_differences_name_the_fields_and_both_values():
    old = parse().raw
    new = parse(seed=1, model=dict(hidden=(5,)), optim=dict(lr=0.5), data=dict(seq_len=3)).raw
    assert differences(old, new) == [
        "data.seq_len was 128 and is now 3",
        "model.hidden was [400] and is now [5]",
        "optim.lr was 0.001 and is now 0.5",
        "seed was 0 and is now 1",
    ]


def test_differences_name_keys_that_only_one_config_has():
    old, new = parse("gan").raw, parse("gan", optim=dict(critic=dict(), generator=dict())).raw
    phrases = differences(old, new)
    assert "optim.lr was 0.001 and is now None" in phrases
    assert "optim.critic.lr was None and is now 0.001" in phrases


@pytest.mark.parametrize(
    "path, value",
    [
        ("train.steps", 5),
        ("train.log_every", 5),
        ("eval.every", 5),
        ("eval.batch_size", 5),
        ("eval.image.fidelity", False),
        ("objective.importance_samples", 5),
        ("sample.num", 5),
        ("sample.temperature", 0.5),
        ("checkpoint.every", 5),
        ("checkpoint.keep", 5),
        ("data.data_dir", "elsewhere"),
    ],
)
def test_differences_skip_resumable_fields(path, value):
    new = parse(**nested(path, value))
    assert differences(parse().raw, new.raw, new.resumable_fields()) == []


@pytest.mark.parametrize(
    "path, value",
    [
        ("train.accumulate", 2),
        ("train.compute_dtype", "bfloat16"),
        ("data.source", "tfds:x"),
        ("data.batch_size", 8),
        ("data.split_seed", 1),
        ("ema.halflife", 3.0),
        ("objective.beta", 2.0),
    ],
)
def test_differences_see_what_changes_the_numbers(path, value):
    new = parse(**nested(path, value))
    phrases = differences(parse().raw, new.raw, new.resumable_fields())
    assert [p.split()[0] for p in phrases] == [path]


def test_differences_do_not_tell_tuples_from_lists():
    assert differences({"model": {"hidden": (1, 2)}}, {"model": {"hidden": [1, 2]}}) == []


def test_sample_options_replace_some_of_the_recipes():
    c = parse(sample=dict(num=7, label=2))
    assert build.sample_options(c, dict(temperature=1)) == VAESample(
        num=7, label=2, temperature=1.0
    )
    assert build.sample_options(c, {}) == c.sample


@pytest.mark.parametrize(
    "options, part",
    [
        (dict(top_k=3), "sampling from 'vae' has no option 'top_k': choose one of label, num"),
        (dict(temperature="hot"), "sample.temperature must be of type float"),
        (dict(num=0), "sample.num must be at least 1"),
        (dict(name="x"), "has no option 'name'"),
    ],
)
def test_wrong_sample_options_are_refused(options, part):
    with pytest.raises(UserError) as caught:
        build.sample_options(parse(), options)
    assert part in str(caught.value)
