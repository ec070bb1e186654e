"""Config: the typed and validated form of a recipe.

A recipe is an `ml_collections.ConfigDict`. `Config.parse` turns it into frozen dataclasses, so that
the rest of the library reads checked attributes. The sections `model`, `objective` and `sample`
differ between families: their dataclasses are defined with the code that reads them and are passed
as `types`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from aigc_jax.core.errors import UserError, did_you_mean
from aigc_jax.core.fields import check_value, marked, option, parse_section
from aigc_jax.core.registry import Registry

# Entries are registered by training/optimizers.py and by packages outside the library.
OPTIMIZERS: Registry[Callable[[Any], Any]] = Registry("optimizer", "optim.name")
SCHEDULES: Registry[Callable[[Any, int], Any]] = Registry("schedule", "optim.schedule")


@dataclasses.dataclass(frozen=True)
class Data:
    """Source of examples, their format, split and batching."""

    # digits, stacked_digits, python_docs, tfds:NAME, KIND:PATH, mix:0.7*tfds:A,0.3*tfds:B
    source: str = "digits"
    # tfds: folder of the data sets: a path, gs://… or s3://…
    data_dir: str = option("~/tensorflow_datasets", resumable=True)
    text_field: str = option("text", nonempty=True)  # jsonl:FILE: key of the text
    label_field: str = option("label", nonempty=True)  # jsonl:FILE: key of the class
    batch_size: int = option(64, low=1)  # examples per step, over all devices
    # Text: format of an example; see docs/lm.md.
    format: str = option("stream", choices=("stream", "documents", "chat", "labels", "tags"))
    seq_len: int = option(128, low=1)  # text: tokens per example
    # Format stream: new tokens scored per held-out window; 0: half of seq_len.
    eval_stride: int = option(0, low=0)
    tokenizer: str = option("byte", nonempty=True)  # byte, char, bpe, file:FILE, workdir:DIR
    vocab_size: int = option(4096, low=1)  # bpe: entries of the vocabulary
    # Held-out examples, if the source does not define them: random ones, or the last ones.
    split: str = option("random", choices=("random", "tail"))
    validation_fraction: float = option(0.2, low=0.0, high=0.9)  # fraction that `split` holds out
    split_seed: int = option(0, low=0)  # random seed of `split`
    threads: int = option(4, low=0, resumable=True)  # reader threads per process
    in_memory: int = option(1 << 30, low=0)  # tfds: max. bytes of text in memory; more is streamed
    shuffle_window: int = option(1 << 22, low=1)  # tfds: records per window of the shuffle
    max_train_examples: int = option(0, low=0)  # max. training images or documents; 0: no limit


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """The frozen autoencoder in whose latents or codes the model works (Rombach et al. 2022)."""

    workdir: str = ""  # workdir of a trained autoencoder; "" disables
    # The autoencoder's config, filled in by `experiment.first_stage.resolve_first_stage`. It is
    # saved with the run, so that the autoencoder's workdir is not needed later.
    config: dict = dataclasses.field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Returns whether there is a first stage."""
        return bool(self.workdir or self.config)


@dataclasses.dataclass(frozen=True)
class Optim:
    """Optimizer and learning-rate schedule of one player."""

    name: str = option("adamw", choices=OPTIMIZERS)
    lr: float = option(1e-3, low=0.0)  # peak learning rate
    schedule: str = option("cosine", choices=SCHEDULES)  # shape of the schedule after warm-up
    warmup_steps: int = option(0, low=0)  # steps of linear warm-up; 0 disables
    decay_fraction: float = option(
        0.2, low=0.0, high=1.0
    )  # wsd: final fraction of steps that decay
    final_lr_fraction: float = option(0.0, low=0.0, high=1.0)  # final learning rate / lr
    # Cosine, linear: steps until the final learning rate; 0: train.steps.
    decay_steps: int = option(0, low=0)
    b1: float = option(0.9, low=0.0, high=1.0)  # β₁ of Adam; momentum of SGD and Muon
    b2: float = option(0.999, low=0.0, high=1.0)  # β₂ of Adam
    b2_start: float = option(0.0, low=0.0, high=1.0)  # Adam, AdamW: initial β₂; 0: constant b2
    b2_steps: int = option(0, low=0)  # steps of the half cosine from b2_start to b2; 0: train.steps
    eps: float = option(1e-8, low=1e-30)  # ε of Adam
    weight_decay: float = option(0.0, low=0.0)  # coefficient of weight decay; 0 disables
    decay_embeddings: bool = False  # weight decay of embeddings too, as in nanoGPT
    adam_lr: float = option(0.0, low=0.0)  # Muon: learning rate of AdamW's parameters; 0: lr
    clip_norm: float = option(0.0, low=0.0)  # max. global norm of the player's gradient; 0 disables


@dataclasses.dataclass(frozen=True)
class Train:
    """Length of training, gradient accumulation, precision and initial parameters."""

    # Steps in total; if it changes on resume, the schedules follow.
    steps: int = option(1000, low=0, resumable=True)
    log_every: int = option(20, low=1, resumable=True)  # steps between metric records
    accumulate: int = option(1, low=1)  # microbatches per step
    # jit shards over the mesh; pmap supports one process and data parallelism only.
    parallel_mode: str = option("jit", choices=("jit", "pmap"), resumable=True)
    compute_dtype: str = option("float32", choices=("float32", "bfloat16"))  # dtype of activations
    init_from: str = ""  # workdir of a run whose parameters to start from; "": random


@dataclasses.dataclass(frozen=True)
class Ema:
    """Moving averages of the parameters, used for evaluation and sampling."""

    halflife: float = option(0.0, low=0.0)  # half-life of the EMA, in examples; 0 disables
    rampup: float = option(0.05, low=0.0)  # half-life ≤ rampup · examples seen; 0: no warm-up
    # Relative widths σ_rel of the power-function averages (Karras et al. 2024, EDM2); () disables.
    sigma_rels: tuple[float, ...] = option((), low=1e-3, high=0.28)
    # Steps between snapshots of these averages, from which --sigma_rel reconstructs others;
    # 0 disables.
    snapshot_every: int = option(0, low=0)


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation on held-out data. A modality has its own subsection, such as `eval.image`."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    every: int = option(0, low=0)  # steps between evaluations during training; 0 disables
    batch_size: int = option(128, low=1, flag="Examples in a batch, over all devices.")
    batches: int = option(0, low=0, flag="Maximum number of held-out batches; 0: all.")
    num_samples: int = option(
        0,
        low=0,
        flag="Samples to draw for metrics of samples; 0: number of training examples, ≤ 10,000.",
    )
    likelihood_examples: int = option(
        0, low=0, flag="Diffusion: held-out examples for the exact likelihood; 0 disables."
    )
    seed: int = option(0, low=0)  # random seed of the samples
    metrics: tuple[str, ...] = option(
        (), flag="Additional metric: a name, or package.module:Class. Repeatable."
    )


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sampling options that all families share; each family adds its own."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    every: int = option(0, low=0)  # steps between samples during training; 0 disables
    num: int = option(64, low=1)  # number of samples
    label: int = option(-1, low=-1, flag="Class of all samples; −1: every class in turn.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Checkpoints of a run."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    every: int = option(500, low=0)  # steps between checkpoints; 0: only at the end
    keep: int = option(2, low=1)  # number of newest checkpoints to keep
    # Reaction to a failed write, such as on a full disk.
    on_error: str = option("stop", choices=("stop", "continue"))


@dataclasses.dataclass(frozen=True)
class AnomalyConfig:
    """Detection of failing training, and rollback."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    # Consecutive non-finite steps after which the run stops or rolls back; 0 disables.
    max_skipped: int = option(25, low=0)
    # A loss more than this many robust standard deviations above the recent median is a spike;
    # 0 disables.
    spike_threshold: float = option(0.0, low=0.0)
    spike_history: int = option(64, low=2)  # recent steps for the median
    # Rollbacks to the last checkpoint before the run stops; the data in between are skipped.
    # 0 disables.
    max_rollbacks: int = option(0, low=0)


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """Timeouts, in seconds, after which another process of the run is considered lost."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    peer_timeout: int = option(60, low=2)  # time without a heartbeat of a process
    stuck_timeout: int = option(1800, low=2)  # time without progress of any process


@dataclasses.dataclass(frozen=True)
class Config:
    """Config of a run. `optim` has one block per player, or one for all under the name ""."""

    seed: int  # random seed of the run
    data: Data
    first_stage: FirstStage
    model: Any
    objective: Any
    optim: dict[str, Optim]
    train: Train
    ema: Ema
    eval: Eval
    sample: Any
    checkpoint: Checkpoint
    anomaly: AnomalyConfig
    watchdog: WatchdogConfig
    plugins: tuple[str, ...]  # modules that register families, samplers, sources, … when imported
    mesh: str  # sizes of the axes data, fsdp, sequence, tensor; −1: all remaining devices
    raw: dict[str, Any]  # the complete config, with defaults, as plain JSON values

    @classmethod
    def parse(cls, config: Mapping[str, Any], types: Mapping[str, type]) -> "Config":
        """Validates `config` and returns its typed form.

        Args:
          config: the recipe, as nested mappings.
          types: the dataclasses of the sections `model`, `objective`, `sample`, and of `eval`
            with the options of modalities.

        Raises:
          UserError: for an unknown key, or an invalid type or value, with its dotted name.
        """
        sections = {**COMMON_SECTIONS, **types}
        known = {"seed", "plugins", "mesh", "optim", *sections}
        for key in config:
            if key not in known:
                raise UserError(f"the config has no key '{key}': {did_you_mean(key, known)}")
        parsed: dict[str, Any] = {
            k: parse_section(t, config.get(k, {}), k, named=k in NAMED) for k, t in sections.items()
        }
        optim = parse_optim(config.get("optim", {}))
        seed = check_value(int, config.get("seed", 0), "seed")
        if not 0 <= seed < 2**31:
            raise UserError(f"seed must be from 0 to {2**31 - 1}, but it is {seed}")
        mesh = check_value(str, config.get("mesh", "data=-1"), "mesh")
        plugins = check_value(tuple[str, ...], config.get("plugins", ()), "plugins")
        raw = dict(seed=seed, plugins=plugins, mesh=mesh)
        for name, section in parsed.items():
            raw[name] = dataclasses.asdict(section)
            if name in NAMED and "name" in config[name]:
                raw[name] = {"name": config[name]["name"], **raw[name]}
        raw["optim"] = {k: dataclasses.asdict(v) for k, v in optim.items()}
        if list(optim) == [""]:
            raw["optim"] = raw["optim"][""]
        return cls(seed=seed, plugins=plugins, mesh=mesh, optim=optim, raw=jsonable(raw), **parsed)

    def resumable_fields(self) -> frozenset[str]:
        """Returns dotted names of the fields that may change when a run is resumed."""
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found = ["mesh"]
        for name, section in sections.items():
            if dataclasses.is_dataclass(section):
                found += marked(type(section), "resumable", name)
        return frozenset(found)

    def optim_of(self, player: str) -> Optim:
        """Returns the optimizer block of `player`.

        Raises:
          UserError: if the recipe has a block per player, but none for this one.
        """
        if "" in self.optim:
            return self.optim[""]
        if player not in self.optim:
            raise UserError(
                f"optim has blocks for {', '.join(self.optim)}, but none for the player"
                f" '{player}': add optim.{player}"
            )
        return self.optim[player]


NAMED = ("model", "objective")  # sections whose `name` chooses a class from a registry
COMMON_SECTIONS = dict(
    data=Data,
    first_stage=FirstStage,
    train=Train,
    ema=Ema,
    eval=Eval,
    checkpoint=Checkpoint,
    anomaly=AnomalyConfig,
    watchdog=WatchdogConfig,
)


def parse_optim(value: Mapping[str, Any]) -> dict[str, Optim]:
    """Parses a block per player, or one block for all, stored under the name ""."""
    if isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values()):
        return {
            player: parse_section(Optim, block, f"optim.{player}")
            for player, block in value.items()
        }
    return {"": parse_section(Optim, value, "optim")}


def jsonable(value: Any) -> Any:
    """Converts tuples to lists, as JSON does, so that configs compare equal."""
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested keys: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, path + ".") if isinstance(value, Mapping) else {path: value}
    return flat


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """Returns the fields in which two configs differ, each as a phrase.

    Args:
      old: plain values, such as `Config.raw`.
      new: plain values.
      ignored: dotted names of fields that may differ.
    """
    old, new = flatten(jsonable(old)), flatten(jsonable(new))
    phrases = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key not in ignored:
            phrases.append(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}")
    return phrases
