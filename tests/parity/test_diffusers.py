"""Our image networks give what diffusers' give, read from its folders and written for it.

Needs torch and diffusers (the extra `parity`); skipped without them.
"""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

from aigc_jax.core.conditions import Condition  # noqa: E402
from aigc_jax.experiment.restore import restore  # noqa: E402
from aigc_jax.families.diffusion.dit import DiT  # noqa: E402
from aigc_jax.families.diffusion.unet import UNet  # noqa: E402
from aigc_jax.families.vae.kl_autoencoder import Decoder, Encoder  # noqa: E402
from aigc_jax.interop import convert  # noqa: E402
from aigc_jax.interop.diffusers.read_folder import (  # noqa: E402
    WEIGHTS,
    read_diffusers_folder,
)
from aigc_jax.interop.diffusers.write_folder import write_diffusers_folder  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
CLOSE = dict(rtol=1e-4, atol=1e-4)
TIME = [3, 999]

PLAIN = dict(
    sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
)  # fmt: skip
UNETS = {
    "plain": PLAIN,
    # google/ddpm-cifar10-32's choices, at small sizes and with odd numbers of groups.
    "ddpm": PLAIN | dict(
        block_out_channels=(6, 9, 9), norm_num_groups=3, layers_per_block=2, freq_shift=1,
        flip_sin_to_cos=False, downsample_padding=0, norm_eps=1e-6, attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")),
    "grey, by class": PLAIN | dict(
        in_channels=1, out_channels=1, num_class_embeds=5, resnet_time_scale_shift="scale_shift",
        center_input_sample=True, attention_head_dim=4, time_embedding_dim=24),
    "blocks": PLAIN | dict(
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(5, 10, 15), norm_num_groups=5, downsample_type="resnet",
        upsample_type="resnet", attention_head_dim=5, attn_norm_num_groups=3, out_channels=6),
    "bare": PLAIN | dict(
        sample_size=(8, 12), mid_block_type=None, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2),
    "no attention in the middle": PLAIN | dict(add_attention=False),
}  # fmt: skip
SMALL = dict(
    sample_size=8, in_channels=3, num_attention_heads=2, attention_head_dim=8, num_layers=2,
    patch_size=2, num_embeds_ada_norm=5,
)  # fmt: skip
DITS = {
    "plain": SMALL,
    "learned sigma": SMALL | dict(in_channels=4, out_channels=8, patch_size=4, num_layers=1),
    "grey": SMALL | dict(
        in_channels=1, attention_bias=False, activation_fn="gelu", norm_eps=1e-6, patch_size=1,
        sample_size=5, num_attention_heads=3),
}  # fmt: skip
KLS = {
    "one level": dict(sample_size=8, block_out_channels=(8,), norm_num_groups=2),
    "stable diffusion": dict(
        sample_size=16, block_out_channels=(6, 9, 9), norm_num_groups=3, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3),
    "grey, bare": dict(
        sample_size=(8, 12), in_channels=1, out_channels=1, latent_channels=2, norm_num_groups=5,
        block_out_channels=(5, 10), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, mid_block_add_attention=False,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.5, shift_factor=0.1),
}  # fmt: skip


def theirs(kind, config):
    """One of their models, every parameter random."""
    torch.manual_seed(0)
    model = kind(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def given(label):
    return {"label": Condition.of(label)}


def nchw(x):
    return torch.tensor(np.moveaxis(x, -1, 1))


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def images(found):
    return np.random.default_rng(0).normal(size=(2, *found.shape)).astype(np.float32)


def check_denoiser(network, kind, config, tmp_path):
    """Read by us, written by us, read by them: the same outputs, and the same bits of weights."""
    model = theirs(kind, config)
    model.save_pretrained(tmp_path / "theirs")
    found = read_diffusers_folder(str(tmp_path / "theirs"))
    x, time = images(found), np.array(TIME)
    label = np.array([1, found.classes - 1])
    ours = network(found.table.config(**found.model), found.classes)
    out = jax.jit(ours.apply)({"params": found.params}, x, time.astype(np.float32), given(label))

    def ask(model):
        told = {} if found.classes == 0 else {"class_labels": torch.tensor(label)}
        with torch.no_grad():
            return nhwc(model(nchw(x), torch.tensor(time), **told).sample)

    wanted = ask(model)
    colours = found.shape[2]
    assert np.abs(wanted).std() > 0.01
    np.testing.assert_allclose(out, wanted[..., :colours], **CLOSE)
    check_way_back(found, tmp_path)
    np.testing.assert_array_equal(ask(kind.from_pretrained(tmp_path / "ours")), wanted)


def check_way_back(found, tmp_path):
    """Written and read again it is the same, and so are the bytes of what is written from that."""
    again = found
    for folder in ("ours", "again"):
        config = again.table.config(**again.model)
        write_diffusers_folder(
            str(tmp_path / folder), config, again.params, again.shape, again.classes,
            dtype=again.dtype,
        )  # fmt: skip
        again = read_diffusers_folder(str(tmp_path / folder))
        assert dataclasses.replace(again, params={}) == dataclasses.replace(found, params={})
        jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    for file in ("config.json", WEIGHTS):
        one, other = ((tmp_path / folder / file).read_bytes() for folder in ("ours", "again"))
        assert one == other, file


@pytest.mark.parametrize("name", UNETS)
def test_unet(name, tmp_path):
    check_denoiser(UNet, diffusers.UNet2DModel, UNETS[name], tmp_path)


@pytest.mark.parametrize("name", DITS)
def test_dit(name, tmp_path):
    check_denoiser(DiT, diffusers.DiTTransformer2DModel, DITS[name], tmp_path)


def test_a_dit_whose_blocks_have_one_embedder_is_read_as_such(tmp_path):
    model = theirs(diffusers.DiTTransformer2DModel, SMALL)
    first, second = (block.norm1.emb for block in model.transformer_blocks)
    second.load_state_dict(first.state_dict())
    model.save_pretrained(tmp_path / "theirs")
    found = read_diffusers_folder(str(tmp_path / "theirs"))
    assert found.model["embedders"] == "shared" and "embedder" in found.params
    x, label = images(found), np.array([0, 5])  # the last is "no class"
    out = DiT(found.table.config(**found.model), found.classes).apply(
        {"params": found.params}, x, np.array(TIME, np.float32), given(label)
    )
    with torch.no_grad():
        wanted = model(nchw(x), torch.tensor(TIME), torch.tensor(label)).sample
    np.testing.assert_allclose(out, nhwc(wanted), **CLOSE)
    check_way_back(found, tmp_path)


@pytest.mark.parametrize("name", KLS)
def test_kl_autoencoder(name, tmp_path):
    model = theirs(diffusers.AutoencoderKL, KLS[name])
    model.save_pretrained(tmp_path / "theirs")
    found = read_diffusers_folder(str(tmp_path / "theirs"))
    config = found.table.config(**found.model)
    x = np.random.default_rng(0).uniform(size=(2, *found.shape)).astype(np.float32)
    mean, log_var = jax.jit(Encoder(config, 0).apply)({"params": found.params["encoder"]}, x)
    z = np.random.default_rng(1).normal(size=mean.shape).astype(np.float32)
    plain = dataclasses.replace(config, signed_output=False)
    image = jax.jit(Decoder(plain, found.shape, 0).apply)({"params": found.params["decoder"]}, z)
    with torch.no_grad():
        latents = model.encode(nchw(2 * x - 1)).latent_dist
        decoded = model.decode(nchw(z)).sample
    np.testing.assert_allclose(mean, nhwc(latents.mean), **CLOSE)
    np.testing.assert_allclose(log_var, nhwc(latents.logvar), **CLOSE)
    np.testing.assert_allclose(image, nhwc(decoded), **CLOSE)
    logit = Decoder(config, found.shape, 0).apply({"params": found.params["decoder"]}, z)
    shown = 2 / (1 + np.exp(-logit)) - 1
    np.testing.assert_allclose(shown, np.clip(nhwc(decoded), -1, 1), rtol=0, atol=2e-4)
    check_way_back(found, tmp_path)
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        np.testing.assert_array_equal(again.decode(nchw(z)).sample, decoded)
    for key in ("scaling_factor", "latent_channels"):
        assert again.config[key] == model.config[key]


SCHEDULERS = [
    dict(prediction_type="epsilon", beta_schedule="linear"),
    dict(prediction_type="v_prediction", beta_schedule="scaled_linear", beta_start=0.00085,
         beta_end=0.012),
    dict(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
]  # fmt: skip


@pytest.mark.parametrize("settings", SCHEDULERS)
def test_a_converted_model_denoises_as_theirs_does(settings, tmp_path):
    """Through a workdir, with the time and the noise that their scheduler has."""
    model = theirs(diffusers.UNet2DModel, PLAIN)
    scheduler = diffusers.DDPMScheduler(**settings, clip_sample=False)
    model.save_pretrained(tmp_path / "theirs" / "unet")
    scheduler.save_pretrained(tmp_path / "theirs" / "scheduler")
    convert.import_model(f"diffusers:{tmp_path}/theirs/unet", str(tmp_path / "w"))
    run, state, _ = restore(str(tmp_path / "w"))
    time = torch.tensor(TIME)
    clean = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=clean.shape).astype(np.float32)
    noisy = scheduler.add_noise(nchw(clean), nchw(noise), time)
    with torch.no_grad():
        out = model(noisy, time).sample
    wanted = [
        nhwc(scheduler.step(out[i : i + 1], t, noisy[i : i + 1]).pred_original_sample)[0]
        for i, t in enumerate(TIME)
    ]
    alpha = scheduler.alphas_cumprod[time].numpy().astype(np.float64)[:, None, None, None]
    sigma = np.sqrt((1 - alpha) / alpha).astype(np.float32)
    x, sigma_B = clean + sigma * noise, sigma[:, 0, 0, 0]
    ours = jax.jit(run.objective.denoise)(state.params["model"], x, sigma_B, {})
    np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    convert.export_model(str(tmp_path / "w"), f"diffusers:{tmp_path}/ours")
    again = diffusers.DDPMScheduler.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(again.alphas_cumprod, scheduler.alphas_cumprod)
    assert again.config.prediction_type == scheduler.config.prediction_type


def test_a_pipeline_of_latents_goes_there_and_back(tmp_path):
    """A DiT with its autoencoder: one workdir here, a pipeline that diffusers loads there."""
    model = theirs(diffusers.DiTTransformer2DModel, DITS["learned sigma"])
    autoencoder = theirs(diffusers.AutoencoderKL, KLS["one level"])
    model.save_pretrained(tmp_path / "theirs" / "transformer")
    autoencoder.save_pretrained(tmp_path / "theirs" / "vae")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "theirs" / "scheduler")
    convert.import_model(f"diffusers:{tmp_path}/theirs/transformer", str(tmp_path / "w"))
    run, state, _ = restore(str(tmp_path / "w"))
    frozen = state.params["first_stage"]
    latent = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    image = jax.jit(run.objective.stage.decode)(frozen["params"], {}, latent)
    with torch.no_grad():
        wanted = nhwc(autoencoder.decode(nchw(latent) / autoencoder.config.scaling_factor).sample)
    wanted = np.clip(127.5 * (wanted + 1), 0, 255)
    assert np.abs(image.astype(np.float32) - wanted).max() < 0.6  # the nearest grey level
    convert.export_model(str(tmp_path / "w"), f"diffusers:{tmp_path}/ours")
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path / "ours")
    for one, other in ((loaded.transformer, model), (loaded.vae, autoencoder)):
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, tensor in other.state_dict().items():
            assert torch.equal(one.state_dict()[name], tensor), name
    assert loaded.vae.config.scaling_factor == autoencoder.config.scaling_factor
