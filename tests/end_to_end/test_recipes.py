"""The recipes of language models: their sizes, and two steps of the large ones made small."""

import glob
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import CONFIGS

from aigc_jax.experiment import build
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizers import ByteTokenizer, CharTokenizer

FOLDER = CONFIGS / "lm"
CHARACTERS = CharTokenizer([chr(i) for i in range(33, 98)])  # as many as Shakespeare has

# Parameters that are trained, and all of them. Those of published models are the published ones.
SIZES = {
    "gpt2_124m.py": (124_475_904, 124_475_904),
    "llama_1b.py": (1_235_814_400, 1_235_814_400),
    "llama_8b.py": (8_030_261_248, 8_030_261_248),
    "llama_70b.py": (70_553_706_496, 70_553_706_496),
    "shakespeare_char.py": (804_224, 804_224),
    "shakespeare_char.py:best": (802_656, 802_656),
    "shakespeare_char.py:gpu": (10_745_472, 10_745_472),
    "sft.py": (134_515_008, 134_515_008),
    "lora_smollm2.py": (2_442_240, 136_957_248),
    "ner.py": (4_891_981, 139_406_989),
}


def parts(name, **changes):
    """The run of a recipe, for data of the right kind."""
    recipe = load_recipe(str(FOLDER / name))
    recipe.update_from_flattened_dict({"mesh": "data=1", **changes})
    if name == "llama_1b.py" and "model.vocab_size" not in changes:
        recipe.model.vocab_size = 128_256
    config = build.parse_config(recipe)
    characters = name.startswith("shakespeare")
    names = tuple("ABCDEFGHIJKLM") if config.data.format == "tags" else ()
    spec = TextSpec(
        CHARACTERS if characters else ByteTokenizer(),
        config.data.seq_len,
        config.data.format,
        names,
    )
    return build.build(config, spec)


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_has_the_size_that_it_says(name):
    run = parts(name)
    shapes = run.state_shapes()
    players = {p: sum(x.size for x in jax.tree.leaves(t)) for p, t in shapes.params.items()}
    assert (players["model"], sum(players.values())) == SIZES[name]


def test_the_best_recipe_has_no_more_parameters_and_sees_no_more_tokens_than_nanogpt():
    plain, best = (parts(f"shakespeare_char.py{v}").config for v in ("", ":best"))
    assert SIZES["shakespeare_char.py:best"][0] <= SIZES["shakespeare_char.py"][0]
    for config in (plain, best):
        assert (config.train.steps, config.data.batch_size, config.data.seq_len) == (2000, 12, 64)
        assert config.data.eval_stride == 64 and config.data.split == "tail"


def test_every_recipe_of_language_models_is_looked_at():
    files = {os.path.basename(f) for f in glob.glob(os.path.join(FOLDER, "*.py"))}
    # Of what images an autoencoder makes a model is told by its workdir alone.
    others = {"quickstart.py", "image_codes.py"}
    assert files - {name.partition(":")[0] for name in SIZES} == others


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2_124m.py", "llama_1b.py"])
def test_two_steps_of_a_large_recipe_made_small(name):
    """Two layers, fewer tokens; a narrower Llama, whose Muon would take minutes on a CPU."""
    small = {"model.layers": 2, "data.seq_len": 64, "data.batch_size": 4, "train.accumulate": 2}
    if name == "llama_1b.py":
        small |= {"model.width": 256, "model.heads": 4, "model.kv_heads": 1}
        small |= {"model.mlp_width": 512, "model.vocab_size": 1024}
    run = parts(name, **small)
    state = run.step.put_state(jax.jit(run.init)(jnp.int32(0)))
    batch = run.spec.example_batch(4)
    batch["tokens"] = np.random.default_rng(0).integers(0, 256, (4, 65)).astype(np.int32)
    losses = []
    for _ in range(2):
        state, metrics = run.step(state, run.step.put_batch(batch))
        losses.append(float(metrics["loss"].value()))
        assert float(metrics["skipped"].value()) == 0
    assert np.isfinite(losses).all() and losses[0] < 12
