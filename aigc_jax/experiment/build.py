"""Builds the parts of a run from its config and the spec of its data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from aigc_jax.core.capabilities import (
    HasSequenceLength,
    HasWrongGradients,
    SupportsFirstStage,
    UsesFirstStage,
)
from aigc_jax.core.config import Config, Sample
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import check_value, parse_section
from aigc_jax.core.modality import ArraySpec, Spec, task_of
from aigc_jax.core.objective import Objective
from aigc_jax.core.registry import OWN_PACKAGE, import_plugins, is_import_path
from aigc_jax.core.state import TrainState
from aigc_jax.distributed.logical_axes import with_mesh
from aigc_jax.distributed.mesh import axis_size, check_batch, make_mesh
from aigc_jax.distributed.sharding import is_state_sharded, replicated_state, state_shardings
from aigc_jax.experiment.eval_options import eval_section
from aigc_jax.experiment.python_parts import Network, PythonParts
from aigc_jax.families import registry
from aigc_jax.families.latent.continuous import ContinuousLatentObjective
from aigc_jax.families.latent.token_sequence import TokenSequenceObjective
from aigc_jax.families.registry import Family, Model, Parts
from aigc_jax.training.compile import CompiledStep, compile_step
from aigc_jax.training.init import init_state
from aigc_jax.training.optimizers import Optimizers, make_optimizer
from aigc_jax.training.step import make_step


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the family named by `objective.name`."""
    return registry.FAMILIES[_name(config, "objective")]


def model_of(config: Mapping[str, Any]) -> Model:
    """Returns the model named by `model.name`."""
    return family_of(config).model(_name(config, "model"))


def _name(config: Mapping[str, Any], section: str) -> str:
    block = config.get(section)
    name = block.get("name") if isinstance(block, Mapping) else None
    return name if isinstance(name, str) else str(name)


def parse_config(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """Parses a recipe into its typed form, with defaults filled in.

    Modules listed in `plugins` are imported first. Modules outside the library that define the
    family or the model are added to `plugins`, so that the workdir records its dependencies.

    Raises:
      UserError: for an unknown key, or an invalid type or value, with its name.
    """
    try:
        plain = ml_collections.ConfigDict(config).to_dict()
    except (TypeError, ValueError, AttributeError) as e:  # a key with a dot, or named like a method
        raise UserError(f"the config cannot be read ({e}): rename the key") from e
    plugins = check_value(tuple[str, ...], plain.get("plugins", ()), "plugins")
    import_plugins(plugins)
    family, model = family_of(plain), model_of(plain)
    plain["plugins"] = (*plugins, *_registered_by(plain, family, model))
    mentioned = plain.get("eval")
    types = dict(
        objective=family.objective,
        sample=family.sample,
        model=model.config,
        eval=eval_section(mentioned if isinstance(mentioned, Mapping) else ()),
    )
    return Config.parse(plain, types)


def _registered_by(config: Mapping[str, Any], family: Family, model: Model) -> list[str]:
    """Returns modules outside the library that define a registered family or model."""
    sources = {"objective": family.objective, "model": model.config}
    known = (*config["plugins"], "__main__") if config.get("plugins") else ("__main__",)
    found = (
        item.__module__
        for section, item in sources.items()
        if not is_import_path(_name(config, section))
        and item.__module__.partition(".")[0] != OWN_PACKAGE
        and item.__module__ not in known
    )
    return list(dict.fromkeys(found))


def recipe(**sections: Any) -> ml_collections.ConfigDict:
    """Builds a recipe with all keys present, so that each can be overridden on the command line.

    `optim` is one block, or one per player.
    """
    return ml_collections.ConfigDict(_tuples(parse_config(sections).raw))


def _tuples(value: Any) -> Any:
    """Converts lists to tuples, which command-line flags can override."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
      config: its typed config.
      spec: spec of its data.
      objective: the family's objective.
      init: pure function from a seed to the initial state.
      step: the compiled train step.
      mesh: the devices.
      shardings: a prefix pytree of shardings for the state; an entry applies to its whole subtree.
      optimizers: `{player: Optax transformation}`.
      schedules: `{player: learning rate by training step}`, without players whose optimizer was
        passed from Python.
      parts: network and optimizers passed from Python.
    """

    config: Config
    spec: Spec
    objective: Objective
    init: Callable[[jax.Array], TrainState]
    step: CompiledStep
    mesh: Mesh
    shardings: TrainState
    optimizers: Optimizers
    schedules: Mapping[str, Callable[[jax.Array], jax.Array]]
    parts: PythonParts

    def state_shapes(self) -> TrainState:
        """Returns the state's shapes without computing anything."""
        return jax.eval_shape(self.init, jnp.int32(0))

    def fresh_state(self) -> TrainState:
        """Returns an initial state, each array created in its sharding."""
        init = jax.jit(with_mesh(self.mesh, self.init), out_shardings=self.shardings)
        return init(jnp.int32(self.config.seed))


def make_objective(config: Config, spec: Spec, network: Network | None = None) -> Objective:
    """Builds the objective of a config for data like `spec`; with a first stage, on its latents.

    Args:
      config: config of the run.
      spec: spec of the data.
      network: network passed from Python, which replaces that of the config.

    Raises:
      UserError: if the family does not support such data, or the first stage is not an autoencoder.
    """
    if not config.first_stage.given:
        return _make_objective(config, spec, network)
    stage = make_objective(parse_config(config.first_stage.config), spec)
    if not isinstance(stage, SupportsFirstStage):
        raise UserError(
            f"first_stage.workdir={config.first_stage.workdir} is not the run of an autoencoder:"
            " set it to the workdir of a run of configs/vae/kl.py, fsq.py or vq.py"
        )
    kind = TokenSequenceObjective if stage.num_codes else ContinuousLatentObjective
    arrays = cast(ArraySpec, spec)  # since an autoencoder of them could be made
    latent_spec = kind.latent_spec_of(stage, arrays)
    return kind(_make_objective(config, latent_spec, network), stage, arrays)


def _make_objective(config: Config, spec: Spec, network: Network | None) -> Objective:
    family = family_of(config.raw)
    name, stage = config.raw["objective"]["name"], config.first_stage
    if task_of(spec) not in family.tasks:
        given = f"data.source='{config.data.source}', data.format={config.data.format}"
        if stage.given:
            given = f"first_stage.workdir={stage.workdir}"
        raise UserError(
            f"objective.name='{name}' models {' or '.join(family.tasks)}, but {given} gives"
            f" {task_of(spec)} to model: change one of them"
        )
    dtype = jnp.dtype(config.train.compute_dtype)
    made = model_of(config.raw).network if network is None else _as_constructor(network)
    return family.make(Parts(config.objective, config.model, made, spec, dtype))


def _as_constructor(network: Network) -> Any:
    """Wraps a network as the constructor that families call; it ignores the arguments."""
    if isinstance(network, tuple):
        return tuple(_as_constructor(part) for part in network)
    return lambda *arguments: network


def build(
    config: Config,
    spec: Spec,
    mesh: Mesh | None = None,
    trains: bool = True,
    parts: PythonParts | None = None,
) -> Run:
    """Builds a run from its config and the spec of its data.

    Args:
      config: config of the run.
      spec: spec of the data.
      mesh: the devices, which need not be attached to lower the step; defaults to the config's.
      trains: whether the run trains, so that the batch size must suit the mesh.
      parts: network and optimizers passed from Python.

    Raises:
      UserError: if sections of the config contradict each other or do not suit the mesh.
    """
    parts = parts or PythonParts()
    objective = make_objective(config, spec, parts.network)
    players = tuple(dict.fromkeys(objective.turns))
    unknown = set(config.optim) - {"", *players}
    if unknown:
        raise UserError(
            f"optim.{sorted(unknown)[0]} is not a player of this objective: its players are"
            f" {', '.join(players)}"
        )
    optimizers, schedules = {}, {}
    for p in players:
        given = parts.optimizer_of(p)
        if given is not None:
            optimizers[p] = given
            continue
        optimizers[p], schedules[p] = make_optimizer(
            config.optim_of(p), config.train.steps, objective.turns.count(p)
        )
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    if trains:
        check_batch(config.data.batch_size, mesh, config.train.accumulate, "data.batch_size")
    check_batch(config.eval.batch_size, mesh, 1, "eval.batch_size")
    model_spec = objective.latent_spec if isinstance(objective, UsesFirstStage) else spec
    check_length(config, model_spec, mesh)
    check_product(config, mesh)
    ema = config.ema
    example = spec.example_batch(2)

    def init(seed: jax.Array) -> TrainState:
        return init_state(
            objective, optimizers, example, seed, ema=ema.halflife > 0, power_ema=ema.sigma_rels
        )

    shardings = replicated_state(mesh)
    if is_state_sharded(mesh):
        boxed, _ = jax.eval_shape(objective.init, jax.random.key(0), example)
        shapes = jax.eval_shape(init, jnp.int32(0))
        shardings = state_shardings(shapes, boxed, mesh)
    step = make_step(objective, optimizers, ema, config.train.accumulate)
    return Run(
        config=config,
        spec=spec,
        objective=objective,
        init=init,
        step=compile_step(step, mesh, config.train.parallel_mode, shardings),
        mesh=mesh,
        shardings=shardings,
        optimizers=optimizers,
        schedules=schedules,
        parts=parts,
    )


def check_length(config: Config, spec: Spec, mesh: Mesh) -> None:
    """Raises UserError unless the mesh axis `sequence` can shard the model's sequences."""
    parts, name = axis_size(mesh, "sequence"), config.raw["model"]["name"]
    if parts == 1:
        return
    if not isinstance(config.model, HasSequenceLength):
        raise UserError(
            f"sequence={parts} in mesh shards sequences, but model.name='{name}' does not read"
            " sequences: use fsdp or tensor instead"
        )
    length = config.model.length_of(spec)
    if length % parts:
        raise UserError(
            f"sequence={parts} in mesh does not divide the sequence length {length} of model.name="
            f"'{name}': change data.seq_len, the size of the images, or sequence"
        )


def check_product(config: Config, mesh: Mesh) -> None:
    """Raises UserError for combinations of mesh axes where XLA computes wrong gradients."""
    wrong = config.model.wrong_on if isinstance(config.model, HasWrongGradients) else ()
    if wrong and all(axis_size(mesh, axis) > 1 for axis in wrong):
        split, batch = " and ".join(wrong), axis_size(mesh, "data") * axis_size(mesh, "fsdp")
        raise UserError(
            f"XLA's partitioner computes a wrong gradient of model.name="
            f"'{config.raw['model']['name']}' where {split} are all larger than 1: use mesh="
            f"fsdp={batch},tensor={axis_size(mesh, 'tensor')}, which shards the batch the same way"
        )


def sample_options(config: Config, overrides: Mapping[str, Any]) -> Sample:
    """Returns the config's sampling options with some replaced.

    Raises:
      UserError: for an option that the family does not have.
    """
    known = {f.name for f in dataclasses.fields(config.sample)}
    for name in overrides:
        if name not in known:
            family = config.raw["objective"]["name"]
            raise UserError(f"sampling from '{family}' has no option '{name}': choose one of"
                            f" {', '.join(sorted(known - {'every'}))}")  # fmt: skip
    values = {**dataclasses.asdict(config.sample), **overrides}
    return parse_section(type(config.sample), values, "sample")
