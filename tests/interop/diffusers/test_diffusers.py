"""Folders of diffusers' image models: read, written, and refused in one sentence if they are wrong.

Whether the numbers are diffusers' is `test_parity_images`'s business; nothing here needs torch.
"""

import dataclasses
import math
import os

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.diffusers_models import CONFIGS, DIT, UNET, random_params
from helpers.hostile import damaged, refusal
from helpers.model_folders import edit, put, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigc_jax.core.errors import UserError
from aigc_jax.families.diffusion.dit import DiTConfig
from aigc_jax.families.diffusion.unet import UNetConfig
from aigc_jax.families.vae.kl_autoencoder import KLConfig
from aigc_jax.interop.diffusers.classes import BY_CLASS
from aigc_jax.interop.diffusers.read_folder import (
    WEIGHTS,
    read_diffusers_folder,
    read_image_config,
)
from aigc_jax.interop.diffusers.write_folder import write_diffusers_folder
from aigc_jax.interop.parameters import bind


def folder_of(tmp_path, name="unet"):
    config, shape, classes = CONFIGS[name]
    folder = str(tmp_path / "model")
    params = random_params(config, shape[2], classes)
    write_diffusers_folder(folder, config, params, shape, classes)
    return folder


# There and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back_as_it_was(name, tmp_path):
    config, shape, classes = CONFIGS[name]
    params = random_params(config, shape[2], classes)
    for dtype in ("float32", "bfloat16"):
        folder = str(tmp_path / dtype)
        write_diffusers_folder(
            folder, config, params, shape, classes, dtype=dtype, max_shard_bytes=999
        )
        assert sum(file.endswith(".safetensors") for file in os.listdir(folder)) > 2
        read = read_diffusers_folder(folder)
        assert read.table.config(**read.model) == config
        assert (read.shape, read.classes, read.dtype) == (shape, classes, dtype)
        one, other = flatten_dict(read.params, sep="/"), flatten_dict(params, sep="/")
        assert one.keys() == other.keys()
        for path in one:
            np.testing.assert_allclose(one[path], other[path], 0 if dtype == "float32" else 4e-3)


def test_every_field_of_a_config_is_known_to_its_table():
    """A new field must say what it means to diffusers."""
    published = dict(zip(BY_CLASS, PUBLISHED.values(), strict=True))
    for name, table in BY_CLASS.items():
        settled = {"learned_sigma", "null_class", "embedders"}
        named = {*table.aigc_fixed, *table.no_effect, *table.read(published[name][0])}
        named |= {field for row in table.settings for field in row.aigc}
        fields = {field.name for field in dataclasses.fields(table.config)}
        assert named <= fields and fields - named <= settled


PUBLISHED = {  # config.json as it lies beside well-known weights, and millions of parameters
    "google/ddpm-cifar10-32": (dict(
        _class_name="UNet2DModel", _diffusers_version="0.0.4", act_fn="silu",
        attention_head_dim=None, block_out_channels=[128, 256, 256, 256],
        center_input_sample=False, down_block_types=[
            "DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, in_channels=3,
        layers_per_block=2, mid_block_scale_factor=1, norm_eps=1e-06, norm_num_groups=32,
        out_channels=3, sample_size=32, time_embedding_type="positional", up_block_types=[
            "UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]), 35.7),
    "stabilityai/sd-vae-ft-mse": (dict(
        _class_name="AutoencoderKL", _diffusers_version="0.4.2", act_fn="silu",
        block_out_channels=[128, 256, 512, 512], down_block_types=["DownEncoderBlock2D"] * 4,
        in_channels=3, latent_channels=4, layers_per_block=2, norm_num_groups=32, out_channels=3,
        sample_size=256, up_block_types=["UpDecoderBlock2D"] * 4), 83.7),
    "facebook/DiT-XL-2-256": (dict(
        _class_name="DiTTransformer2DModel", _diffusers_version="0.12.0.dev0",
        activation_fn="gelu-approximate", attention_bias=True, attention_head_dim=72,
        dropout=0.0, in_channels=4, norm_elementwise_affine=False, norm_num_groups=32,
        norm_type="ada_norm_zero", num_attention_heads=16, num_embeds_ada_norm=1000,
        num_layers=28, out_channels=8, patch_size=2, sample_size=32, upcast_attention=False,
        ), 674.8),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_read_and_give_models_of_the_known_size(name):
    theirs, millions = PUBLISHED[name]
    table = BY_CLASS[theirs["_class_name"]]
    fields, shape, classes = read_image_config(table, theirs, name)
    config = table.config(**fields)
    ours = table.shapes(config, shape[2], classes)
    assert sum(map(math.prod, ours.values())) / 1e6 == pytest.approx(millions, abs=0.1)
    # Each of our parameters is one of theirs or some, and no two of theirs have a name.
    tensors = bind(table.rules(config), ours, table.hf)
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    assert {path for tensor in tensors for path in tensor.rule.aigc} == set(ours)


def test_old_names_and_buffers_are_understood(tmp_path):
    folder = folder_of(tmp_path)
    wanted = read_diffusers_folder(folder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    arrays = {}
    for name, array in weights(folder, WEIGHTS).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        arrays[name] = array
    assert any(".proj_attn." in name for name in arrays)
    put(folder, arrays, WEIGHTS)
    again = read_diffusers_folder(folder)
    np.testing.assert_equal(again.params, wanted.params)
    new = weights(folder_of(tmp_path / "b"), WEIGHTS)
    put(folder, arrays | {n: a for n, a in new.items() if "to_q" in n}, WEIGHTS)
    assert "twice" in refusal(read_diffusers_folder, folder)

    folder = folder_of(tmp_path / "c", "dit")
    buffer = {"pos_embed.pos_embed": np.zeros((1, 4, 8), np.float32)}
    put(folder, weights(folder, WEIGHTS) | buffer, WEIGHTS)
    read_diffusers_folder(folder)


def test_missing_keys_mean_what_they_do_to_diffusers(tmp_path):
    folder = folder_of(tmp_path, "kl")
    edit(folder, drop=["shift_factor", "latents_mean", "use_quant_conv", "sample_size"])
    read = read_diffusers_folder(folder)
    assert read.model["quant_conv"] and read.model["shift_factor"] == 0
    assert read.shape == (32, 32, 3) and "32×32" in read.notes[0]


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, changes, word", [
    ("unet", dict(_class_name="UNet2DConditionModel"), "UNet2DModel"),
    ("unet", dict(_class_name=None), "_class_name"),
    ("unet", dict(time_embedding_type="fourier"), "time_embedding_type"),
    ("unet", dict(mid_block_scale_factor=1.4), "mid_block_scale_factor"),
    ("unet", dict(class_embed_type="identity"), "class_embed_type"),
    ("unet", dict(act_fn="mish"), "act_fn"),
    ("unet", dict(mystery=1), "mystery"),
    ("unet", dict(quantization_config=dict(bits=4)), "quantization_config"),
    ("unet", dict(block_out_channels="4"), "block_out_channels"),
    ("unet", dict(block_out_channels=[]), "block_out_channels"),
    ("unet", dict(block_out_channels=[4, 12]), "shape"),
    ("unet", dict(block_out_channels=[4, 2**30]), "channels"),
    ("unet", dict(block_out_channels=[4, 9]), "divisible"),
    ("unet", dict(layers_per_block=10**8), "blocks"),
    ("unet", dict(layers_per_block=2), "lacks the tensor"),
    ("unet", dict(norm_num_groups=None), "norm_num_groups"),
    ("unet", dict(freq_shift=2), "freq_shift"),
    ("unet", dict(norm_eps=float("nan")), "norm_eps"),
    ("unet", dict(attention_head_dim="8"), "head_size"),
    ("unet", dict(down_block_types=["DownBlock2D", "SkipDownBlock2D"]), "SkipDownBlock2D"),
    ("unet", dict(down_block_types=["DownBlock2D", {}]), "type"),
    ("unet", dict(down_block_types=["AttnDownBlock2D"]), "one type of block"),
    ("unet", dict(down_block_types=["AttnDownBlock2D", "DownBlock2D"]), "other levels"),
    ("unet", dict(downsample_type="fir"), "downsample_type"),
    ("unet", dict(upsample_type="resnet"), "by convolutions at some levels"),
    ("unet", dict(out_channels=5), "out_channels"),
    ("unet", dict(sample_size=-1), "sample_size"),
    ("unet", dict(sample_size=[1, 10**9]), "sample_size"),
    ("unet", dict(num_class_embeds=10**12), "num_class_embeds"),
    ("unet", dict(num_class_embeds=7), "class_embedding"),
    ("unet", dict(in_channels=True), "in_channels"),
    ("dit", dict(norm_type="layer_norm"), "norm_type"),
    ("dit", dict(norm_elementwise_affine=True), "norm_elementwise_affine"),
    ("dit", dict(activation_fn="geglu"), "activation_fn"),
    ("dit", dict(num_attention_heads=10**9), "num_attention_heads"),
    ("dit", dict(num_attention_heads=2**16, attention_head_dim=4), "width"),
    ("dit", dict(attention_head_dim=3), "divisible"),
    ("dit", dict(num_layers=10**6), "depth"),
    ("dit", dict(num_layers=3), "transformer_blocks.2"),
    ("dit", dict(patch_size=2**20), "patch_size"),
    ("dit", dict(num_embeds_ada_norm=None), "class_embedder"),
    ("kl", dict(latents_mean=[0.0]), "latents_mean"),
    ("kl", dict(down_block_types=["AttnDownEncoderBlock2D"] * 2), "AttnDownEncoderBlock2D"),
    ("kl", dict(latent_channels=3), "shape"),
    ("kl", dict(out_channels=6), "out_channels"),
    ("kl", dict(scaling_factor=0), "scaling_factor"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(name, changes, word, tmp_path):
    folder = folder_of(tmp_path, name)
    edit(folder, **changes)
    assert word in refusal(read_diffusers_folder, folder)


def test_folders_that_hold_no_such_model_are_refused(tmp_path):
    assert "no config.json" in refusal(read_diffusers_folder, str(tmp_path))
    for part in ("unet", "vae"):
        (tmp_path / "pipe" / part).mkdir(parents=True)
        (tmp_path / "pipe" / part / "config.json").write_text("{}")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    message = refusal(read_diffusers_folder, str(tmp_path / "pipe"))
    assert "pipeline" in message and "pipe/unet or" in message and "pipe/vae" in message
    folder = folder_of(tmp_path)
    os.rename(os.path.join(folder, WEIGHTS), os.path.join(folder, "diffusion_pytorch_model.bin"))
    assert "pickle" in refusal(read_diffusers_folder, folder)
    os.remove(os.path.join(folder, "diffusion_pytorch_model.bin"))
    assert WEIGHTS in refusal(read_diffusers_folder, folder)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    arrays = weights(folder, WEIGHTS)
    some = "mid_block.attentions.0.to_q.weight"
    for change, word in (
        ({some: np.zeros((8, 9), np.float32)}, "shape"), ({"extra": arrays[some]}, "extra"),
        ({some: np.zeros((8, 8), np.int32)}, "I32"),
    ):  # fmt: skip
        put(folder, arrays | change, WEIGHTS)
        assert word in refusal(read_diffusers_folder, folder)
    del arrays[some]
    put(folder, arrays, WEIGHTS)
    assert some in refusal(read_diffusers_folder, folder)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory, data):
    folder = folder_of(tmp_path_factory.mktemp("m"), data.draw(st.sampled_from(list(CONFIGS))))
    for file in ("config.json", WEIGHTS):
        path = os.path.join(folder, file)
        with open(path, "rb") as f:
            content = data.draw(damaged([f.read()]))
        with open(path, "wb") as f:
            f.write(content)
    try:
        read_diffusers_folder(folder)
    except UserError as e:
        assert str(e).isprintable()


@pytest.mark.parametrize("config, word", [
    (UNetConfig(), "model.residual_scale=1.0"), (UNetConfig(), "resample"),
    (dataclasses.replace(UNET, head_size=0, heads=2), "head_size"),
    (dataclasses.replace(UNET, middle_groups=-1), "condition"),
    (DiTConfig(frequency_shift=1.0, positions="rotary"), "positions=sincos"),
    (DiTConfig(frequency_shift=1.0, activation="silu"), "activation"),
    (DiTConfig(), "model.frequency_shift=1.0"), (KLConfig(norm_groups=2), "signed_output=True"),
    (KLConfig(signed_output=True), "norm_groups"),
])  # fmt: skip
def test_models_that_diffusers_lacks_are_refused(config, word, tmp_path):
    message = refusal(write_diffusers_folder, str(tmp_path / "m"), config, {}, (8, 8, 3), 2)
    assert word in message and not (tmp_path / "m").exists()
    assert "classes" in refusal(write_diffusers_folder, str(tmp_path / "m"), DIT, {}, (4, 4, 1), 0)
    assert "square" in refusal(write_diffusers_folder, str(tmp_path / "m"), DIT, {}, (4, 8, 1), 2)


def test_parameters_that_diffusers_lacks_are_refused(tmp_path):
    params = random_params(UNET, 3, 0) | {"span_in": {"kernel": np.zeros((4, 8), np.float32)}}
    message = refusal(write_diffusers_folder, str(tmp_path / "m"), UNET, params, (4, 4, 3), 0)
    assert "span_in/kernel" in message
