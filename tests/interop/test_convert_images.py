"""diffusers' image models as workdirs and back: the same bytes, or one sentence why not."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import runs
from helpers.diffusers_models import CONFIGS, random_params
from helpers.hostile import refusal

from aigc_jax.experiment.restore import restore
from aigc_jax.families.vae.kl_autoencoder import MAX_SIGNED, Decoder
from aigc_jax.interop import convert
from aigc_jax.interop.diffusers.write_folder import write_diffusers_folder
from aigc_jax.ops.image import to_bytes

LINEAR = dict(
    _class_name="DDPMScheduler", num_train_timesteps=1000, prediction_type="v_prediction",
    beta_schedule="linear", beta_start=0.0001, beta_end=0.02,
)  # fmt: skip


def write(folder, name, scheduler=None):
    config, shape, classes = CONFIGS[name]
    params = random_params(config, shape[2], classes)
    write_diffusers_folder(str(folder), config, params, shape, classes, scheduler=scheduler)
    return params


def contents(folder):
    return {os.path.relpath(path, folder): c for path, c in runs.files(str(folder)).items()}


@pytest.mark.parametrize(
    "name", ["dit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("unet by class", "kl"))]
)
def test_a_model_goes_through_a_workdir_without_a_changed_bit(name, tmp_path):
    write(tmp_path / "first", name, None if name == "kl" else LINEAR)
    workdir = str(tmp_path / "w")
    convert.import_model(f"diffusers:{tmp_path}/first", workdir)
    run, _, step = restore(workdir)
    config, shape, classes = CONFIGS[name]
    assert step == 0 and run.spec.shape == shape and run.spec.num_classes == classes
    assert run.config.model == config
    if name != "kl":
        assert (run.config.objective.prediction, run.config.objective.schedule) == ("v", "linear")
    convert.export_model(workdir, f"diffusers:{tmp_path}/again")
    assert contents(tmp_path / "first") == contents(tmp_path / "again")


@pytest.mark.slow
def test_an_autoencoder_decodes_what_its_network_gives(tmp_path):
    params = write(tmp_path / "first", "kl")
    workdir = str(tmp_path / "w")
    convert.import_model(f"diffusers:{tmp_path}/first", workdir)
    run, state, _ = restore(workdir)
    objective = run.objective
    assert objective.latent_shape == (2, 2, 4)
    latent = np.random.default_rng(0).normal(size=(2, 2, 2, 4)).astype(np.float32)
    plain = dataclasses.replace(run.config.model, signed_output=False)
    decoder = Decoder(plain, (4, 4, 3), 0)

    @jax.jit
    def both():
        wanted = decoder.apply({"params": params["decoder"]}, latent / 0.5)
        return objective.decode(state.params, state.mutables, latent), wanted

    images, wanted = both()
    np.testing.assert_array_equal(images, to_bytes(jnp.clip(wanted, -MAX_SIGNED, MAX_SIGNED)))
    keys = jax.random.split(jax.random.key(0), 2)
    encoded = jax.eval_shape(objective.encode, state.params, {}, {"image": images}, keys)
    assert encoded.shape == latent.shape


@pytest.mark.slow
def test_a_network_beside_its_autoencoder_is_one_of_latents(tmp_path):
    pipeline = tmp_path / "pipeline"
    write(pipeline / "transformer", "dit of own embedders")
    write(pipeline / "vae", "kl")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(LINEAR))
    workdir = str(tmp_path / "w")
    convert.import_model(f"diffusers:{pipeline}/transformer", workdir)
    run, state, _ = restore(workdir)
    assert run.spec.shape == (8, 8, 3) and run.config.objective.prediction == "v"
    assert run.objective.stage.latents.encoder.config.scaling_factor == 0.5
    np.testing.assert_array_equal(state.params["first_stage"]["scale"], 1)
    convert.export_model(workdir, f"diffusers:{tmp_path}/again")
    again = contents(tmp_path / "again")
    assert "model_index.json" in again
    for file, content in contents(pipeline).items():
        if file.endswith(".json"):  # images are as large as the latents say
            size = {"sample_size": 8} if file == "vae/config.json" else {}
            assert json.loads(again[file]) == json.loads(content) | size
        else:
            assert again[file] == content, file


def test_unknown_schedule_is_reported(tmp_path, capsys):
    write(tmp_path / "a", "unet", LINEAR | dict(trained_betas=[0.1]))
    convert.import_model(f"diffusers:{tmp_path}/a", str(tmp_path / "w"))
    assert "trained_betas" in capsys.readouterr().err


def test_models_that_diffusers_lacks_are_refused(tmp_path):
    workdir = str(tmp_path / "w")
    write(tmp_path / "a", "unet", LINEAR)
    convert.import_model(f"diffusers:{tmp_path}/a", workdir)
    assert "model.name is unet" in refusal(convert.export_model, workdir, f"hf:{tmp_path}/b")
    assert "not an empty folder" in refusal(
        convert.export_model, workdir, f"diffusers:{tmp_path}/a"
    )
    assert "diffusers:DIR" in refusal(convert.import_model, "diffuser:x", str(tmp_path / "v"))
    wrong = f"diffusers:{_wrong(tmp_path)}/unet"  # the autoencoder's latents have other channels
    assert "channels" in refusal(convert.import_model, wrong, str(tmp_path / "v"))


def _wrong(tmp_path):
    write(tmp_path / "p" / "unet", "unet")
    write(tmp_path / "p" / "vae", "kl")
    return tmp_path / "p"
