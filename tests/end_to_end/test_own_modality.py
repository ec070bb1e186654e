"""A modality from outside the library: nothing of the library is edited for it."""

import json

import jax
import numpy as np
import pytest

import aigc_jax
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import spec_from_json
from aigc_jax.experiment import build
from aigc_jax.runs.report.samples import write_samples

MODELS = {
    "diffusion": dict(
        model=dict(name="unet", channels=(8,), blocks=1, attention_levels=(), embedding=8),
        objective=dict(name="diffusion", eval_draws=1),
        sample=dict(every=3, steps=2, num=3),
    ),
    "vae": dict(
        model=dict(name="mlp", hidden=(8,), latent=2),
        objective=dict(name="vae"),
        sample=dict(every=3, num=3),
    ),
}


def recipe(family, **changes):
    return aigc_jax.recipe(
        plugins=("helpers.waveform",),
        data=dict(source="waves:40", batch_size=4),
        train=dict(steps=3, log_every=1),
        mesh="data=1",
        **{**MODELS[family], "eval": dict(every=3, num_samples=5, batch_size=4), **changes},
    )


@pytest.mark.parametrize("family", MODELS)
def test_an_own_modality_trains_evaluates_samples_and_is_saved(family, tmp_path):
    workdir = tmp_path / "run"
    last = aigc_jax.train(recipe(family), str(workdir), progress=False)
    assert 0 <= last["loudness"] <= 1 and np.isfinite(last["loss"])
    written = workdir / "samples" / "step_0000003.wave"  # by the modality's writer
    assert written.stat().st_size == 3 * 16
    waves = aigc_jax.sample(str(workdir), num=5)
    assert waves.shape == (5, 16, 1) and waves.dtype == np.uint8
    assert write_samples(waves, str(tmp_path / "own")) == str(tmp_path / "own.wave")
    assert aigc_jax.evaluate(str(workdir), threshold=0)["loudness"] == 1  # eval.waveform
    assert aigc_jax.evaluate(str(workdir), threshold=256)["loudness"] == 0
    found = aigc_jax.evaluate(str(workdir), metrics=("helpers.waveform:Range",))
    assert found["range"] > 200 and found["seen_loss"] == found["loss"]
    assert "loudness" in found


def test_options_of_an_own_modality_are_a_section_of_its_own(tmp_path):
    config = build.parse_config(recipe("vae", eval=dict(waveform=dict(threshold=3))))
    assert config.eval.waveform.threshold == 3
    assert config.raw["eval"]["waveform"] == {"threshold": 3}
    assert "eval.waveform.threshold" in config.resumable_fields()
    assert "waveform" not in build.parse_config(recipe("vae")).raw["eval"]  # only if mentioned
    with pytest.raises(UserError, match=r"eval\.waveform\.treshold"):
        recipe("vae", eval=dict(waveform=dict(treshold=3)))


def test_a_family_that_does_not_model_the_field_refuses_it(tmp_path):
    with pytest.raises(UserError, match="models tokens"):
        aigc_jax.train(
            aigc_jax.recipe(
                plugins=("helpers.waveform",),
                data=dict(source="waves:40", batch_size=4),
                model=dict(name="lstm", width=8),
                objective=dict(name="lm"),
                mesh="data=1",
            ),
            str(tmp_path / "lm"),
            progress=False,
        )


def test_a_metric_of_the_config_must_support_the_run(tmp_path):
    digits = aigc_jax.recipe(
        plugins=("helpers.waveform",),
        data=dict(source="digits", batch_size=4),
        model=dict(name="mlp", hidden=(8,), latent=2),
        objective=dict(name="vae"),
        eval=dict(every=1, metrics=("helpers.waveform:Range",), image=dict(fidelity=False)),
        mesh="data=1",
    )
    with pytest.raises(UserError, match=r"eval\.metrics"):
        aigc_jax.train(digits, str(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()  # found before anything was written


def test_its_spec_survives_json_and_a_checkpoint_cannot_import(tmp_path):
    import helpers.waveform as own

    spec = own.WaveformSpec((16, 1))
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec
    shapes = jax.tree.map(np.shape, spec.example_batch(2))
    assert shapes == {"waveform": (2, 16, 1), "weight": (2,)}
    for name in ("helpers.waveform:WaveformModality", "os:system", 3, None):
        with pytest.raises(UserError, match="checkpoint"):
            spec_from_json({"modality": name, "shape": [16, 1]})
