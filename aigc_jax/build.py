"""Config → the parts of a run: the only file that knows all the others.

A fifth family is one `register` call: an objective with its config, sampling options and models.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from aigc_jax.config import Config, Sample, parse
from aigc_jax.data.spec import ImageSpec, Spec, TextSpec
from aigc_jax.errors import UserError, nearest
from aigc_jax.models import autoencoder, dcgan, lstm, transformer, unet
from aigc_jax.objectives import diffusion, gan, lm, masked_lm, text_task, vae
from aigc_jax.objectives.base import Objective
from aigc_jax.parallel.mesh import check_batch, make_mesh
from aigc_jax.train.compile import CompiledStep, compile_step
from aigc_jax.train.optim import Optimizers, make_optimizer
from aigc_jax.train.state import TrainState, init_state
from aigc_jax.train.step import make_step

Make = Callable[[Any, Any, Any, Any], Objective]


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family is put together.

    Attributes:
      objective: dataclass of the config section `objective`.
      sample: dataclass of the section `sample`.
      models: `{model.name: dataclass of the section model}`.
      make: (objective config, model config, data spec, dtype) → the objective.
      modality: what it can be trained on: "image", "text", "labelled text" or "tagged text".
    """

    objective: type
    sample: type
    models: Mapping[str, type]
    make: Make
    modality: str


TEXT_MODELS = {"transformer": transformer.TransformerConfig, "lstm": lstm.LSTMConfig}
NETWORKS = {transformer.TransformerConfig: transformer.Transformer, lstm.LSTMConfig: lstm.LSTM}


def _text_model(model: Any, spec: TextSpec, dtype: Any, entries: int, outputs: int = 0) -> Any:
    """The network of a text model, for a tokenizer of so many entries."""
    context, vocab_size = model.context or spec.seq_len, model.vocab_size or entries
    if spec.seq_len > context:
        raise UserError(
            f"data.seq_len={spec.seq_len} is longer than model.context={context}: lower it"
        )
    if vocab_size < entries:
        raise UserError(
            f"model.vocab_size={vocab_size} is less than the {entries} tokens that the text needs:"
            " raise it, or leave it at 0"
        )
    return NETWORKS[type(model)](model, vocab_size, context, dtype, outputs)


def _lm(config: Any, model: Any, spec: TextSpec, dtype: Any) -> Objective:
    network = _text_model(model, spec, dtype, spec.tokenizer.size)
    return lm.LanguageModel(config, network, spec.tokenizer)


def _masked_lm(config: Any, model: Any, spec: TextSpec, dtype: Any) -> Objective:
    size, mask = spec.tokenizer.size, spec.tokenizer.mask
    entries = size + 1 if mask is None else size  # a tokenizer without a mask gets one
    network = _text_model(model, spec, dtype, entries)
    mask = size if mask is None else mask
    return masked_lm.MaskedLanguageModel(config, network, spec.tokenizer, mask)


def _text_task(config: Any, model: Any, spec: TextSpec, dtype: Any) -> Objective:
    network = _text_model(model, spec, dtype, spec.tokenizer.size, len(spec.class_names))
    return text_task.TextTask(config, network, spec)


def _classes(model: Any, spec: ImageSpec) -> int:
    return spec.num_classes if model.conditional else 0


def _gan(config: Any, model: Any, spec: ImageSpec, dtype: Any) -> Objective:
    classes = _classes(model, spec)
    generator = dcgan.Generator(model, spec.shape, classes, dtype)
    return gan.GAN(config, generator, dcgan.Critic(model, classes, dtype))


def _vae(config: Any, model: Any, spec: ImageSpec, dtype: Any) -> Objective:
    classes = _classes(model, spec)
    encoder = autoencoder.Encoder(model, classes, dtype)
    decoder = autoencoder.Decoder(model, spec.shape, 1, classes, dtype)
    return vae.VAE(config, encoder, decoder, spec.levels)


def _diffusion(config: Any, model: Any, spec: ImageSpec, dtype: Any) -> Objective:
    network = unet.UNet(model, _classes(model, spec), dtype)
    return diffusion.Diffusion(config, network, spec.shape)


FAMILIES: dict[str, Family] = {
    "lm": Family(lm.LMConfig, lm.LMSample, TEXT_MODELS, _lm, "text"),
    "masked_lm": Family(
        masked_lm.MaskedLMConfig, masked_lm.MaskedLMSample, TEXT_MODELS, _masked_lm, "text"
    ),
    "classification": Family(
        text_task.TaskConfig, text_task.TaskSample, TEXT_MODELS, _text_task, "labelled text"
    ),
    "tagging": Family(
        text_task.TaskConfig, text_task.TaskSample, TEXT_MODELS, _text_task, "tagged text"
    ),
    "gan": Family(gan.GANConfig, gan.GANSample, {"dcgan": dcgan.DCGANConfig}, _gan, "image"),
    "vae": Family(
        vae.VAEConfig,
        vae.VAESample,
        {"conv": autoencoder.ConvConfig, "mlp": autoencoder.MLPConfig},
        _vae,
        "image",
    ),
    "diffusion": Family(
        diffusion.DiffusionConfig,
        diffusion.DiffusionSample,
        {"unet": unet.UNetConfig},
        _diffusion,
        "image",
    ),
}


def register(name: str, family: Family) -> None:
    """Makes `objective.name = name` build `family`."""
    FAMILIES[name] = family


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that `objective.name` names."""
    return _named(config, "objective", FAMILIES)


def _named(config: Mapping[str, Any], section: str, known: Mapping[str, Any]) -> Any:
    block = config.get(section)
    name = block.get("name") if isinstance(block, Mapping) else None
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{section}.name is {name!r}: {nearest(str(name), known)}")
    return known[name]


def parse_config(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """The typed view of a recipe, every default filled in.

    Raises:
      UserError: for a wrong key, type or value, naming it.
    """
    try:
        plain = ml_collections.ConfigDict(config).to_dict()
    except (TypeError, ValueError, AttributeError) as e:  # a key with a dot, or named like a method
        raise UserError(f"the config cannot be read ({e}): rename the key") from e
    family = family_of(plain)
    types = dict(
        objective=family.objective,
        sample=family.sample,
        model=_named(plain, "model", family.models),
    )
    return Config.parse(plain, types)


def recipe(**sections: Any) -> ml_collections.ConfigDict:
    """A recipe with every key present, so that each can be overridden on the command line.

    `optim` is one block, or one per player.
    """
    return ml_collections.ConfigDict(_tuples(parse_config(sections).raw))


def _tuples(value: Any) -> Any:
    """Lists as tuples, which command-line flags can override."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
      config: its typed config.
      spec: what its data looks like.
      objective: the game.
      init: seed → a fresh state; pure.
      step: the compiled train step.
      mesh: the devices.
      optimizers: `{player: Optax transformation}`.
      schedules: `{player: learning rate at a training step}`.
    """

    config: Config
    spec: Spec
    objective: Objective
    init: Callable[[jax.Array], TrainState]
    step: CompiledStep
    mesh: Mesh
    optimizers: Optimizers
    schedules: Mapping[str, Callable[[jax.Array], jax.Array]]

    def state_shapes(self) -> TrainState:
        """The state's shapes; nothing is computed."""
        return jax.eval_shape(self.init, jnp.int32(0))


def make_objective(config: Config, spec: Spec) -> Objective:
    """The objective of a config for data like `spec`.

    Raises:
      UserError: if the family cannot be trained on such data.
    """
    family = family_of(config.raw)
    if spec.modality != family.modality:
        raise UserError(
            f"objective.name='{config.raw['objective']['name']}' is trained on {family.modality},"
            f" but data.source='{config.data.source}' gives {spec.modality}: change one of them, or"
            " data.form"
        )
    dtype = jnp.dtype(config.train.compute_dtype)
    return family.make(config.objective, config.model, spec, dtype)


def build(config: Config, spec: Spec) -> Run:
    """Everything that a run needs, from its config and what its data looks like."""
    objective = make_objective(config, spec)
    players = tuple(dict.fromkeys(objective.turns))
    unknown = set(config.optim) - {"", *players}
    if unknown:
        raise UserError(
            f"optim.{sorted(unknown)[0]} is for a player that does not play:"
            f" {', '.join(players)} do"
        )
    made = {
        p: make_optimizer(config.optim_of(p), config.train.steps, objective.turns.count(p))
        for p in players
    }
    optimizers = {p: chain for p, (chain, _) in made.items()}
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch_size, mesh, config.train.accumulate, "data.batch_size")
    check_batch(config.eval.batch_size, mesh, 1, "eval.batch_size")
    ema = config.ema
    example = spec.example_batch(2)

    def init(seed: jax.Array) -> TrainState:
        return init_state(objective, optimizers, example, seed, ema=ema.halflife > 0)

    step = make_step(objective, optimizers, ema, config.train.accumulate)
    return Run(
        config=config,
        spec=spec,
        objective=objective,
        init=init,
        step=compile_step(step, mesh, config.train.compile),
        mesh=mesh,
        optimizers=optimizers,
        schedules={p: schedule for p, (_, schedule) in made.items()},
    )


def sample_options(config: Config, overrides: Mapping[str, Any]) -> Sample:
    """The config's sampling options with some replaced.

    Raises:
      UserError: for an option that this family's sampling does not have.
    """
    known = {f.name for f in dataclasses.fields(config.sample)}
    for name in overrides:
        if name not in known:
            family = config.raw["objective"]["name"]
            raise UserError(f"sampling from '{family}' has no option '{name}': it has"
                            f" {', '.join(sorted(known - {'every'}))}")  # fmt: skip
    values = {**dataclasses.asdict(config.sample), **overrides}
    return parse(type(config.sample), values, "sample")
