"""Typed, validated views of a config, and the messages for wrong ones.

A recipe is an `ml_collections.ConfigDict`. `Config.parse` turns it into frozen dataclasses, so that
the rest of the library reads checked attributes. The sections `model`, `objective` and `sample`
differ between families: their dataclasses live beside the code that reads them and are handed in
as `types`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from aigc_jax.core.errors import UserError, did_you_mean
from aigc_jax.core.fields import check_value, marked, option, parse
from aigc_jax.core.registry import Registry

# Filled by training/optimizers.py and by packages outside the library.
OPTIMIZERS: Registry[Callable[[Any], Any]] = Registry("optimizer", "optim.name")
SCHEDULES: Registry[Callable[[Any, int], Any]] = Registry("schedule", "optim.schedule")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where examples come from and how they are batched."""

    # digits · stacked_digits · python_docs · tfds:NAME · KIND:PATH · mix:0.7*tfds:A,0.3*tfds:B
    source: str = "digits"
    # The folder of tfds:NAME: a path, gs://… or s3://…
    data_dir: str = option("~/tensorflow_datasets", resumable=True)
    text_field: str = option("text", nonempty=True)  # jsonl:FILE: the key of the text
    label_field: str = option("label", nonempty=True)  # jsonl:FILE: the key of the class
    batch_size: int = option(64, low=1)  # examples per step, over all devices
    # What an example of text is; docs/lm.md.
    format: str = option("stream", choices=("stream", "documents", "chat", "labels", "tags"))
    seq_len: int = option(128, low=1)  # text: tokens that an example predicts or holds
    eval_stride: int = option(0, low=0)  # stream: tokens a held-out window predicts; 0: half
    tokenizer: str = option("byte", nonempty=True)  # byte · char · bpe · file:FILE · workdir:DIR
    vocab_size: int = option(4096, low=1)  # bpe: entries
    split: str = option("random", choices=("random", "tail"))  # used if the source has no split
    validation_fraction: float = option(0.2, low=0.0, high=0.9)  # held out by that split
    split_seed: int = option(0, low=0)
    threads: int = option(4, low=0, resumable=True)  # reader threads per process
    in_memory: int = option(1 << 30, low=0)  # tfds: bytes of text that are held; more is streamed
    shuffle_window: int = option(
        1 << 22, low=1
    )  # tfds: records shuffled together, of more than that
    max_train_examples: int = option(0, low=0)  # training images or documents to use; 0: all


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """The frozen autoencoder in whose latents or codes the model works (Rombach et al. 2022)."""

    workdir: str = ""  # of a trained autoencoder; "": the model works on the data themselves
    # Its config, which `experiment.first_stage.resolve_first_stage` fills in: a run and its
    # checkpoints hold it, so that only the run's own workdir is needed later.
    config: dict = dataclasses.field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Whether there is a first stage."""
        return bool(self.workdir or self.config)


@dataclasses.dataclass(frozen=True)
class Optim:
    """One player's optimizer."""

    name: str = option("adamw", choices=OPTIMIZERS)
    lr: float = option(1e-3, low=0.0)
    schedule: str = option("cosine", choices=SCHEDULES)
    warmup_steps: int = option(0, low=0)
    decay_fraction: float = option(
        0.2, low=0.0, high=1.0
    )  # wsd: the share after warm-up spent decaying
    final_lr_fraction: float = option(0.0, low=0.0, high=1.0)
    decay_steps: int = option(0, low=0)  # cosine, linear: steps until the final rate; 0: all
    b1: float = option(0.9, low=0.0, high=1.0)  # also SGD's and Muon's momentum
    b2: float = option(0.999, low=0.0, high=1.0)
    b2_start: float = option(0.0, low=0.0, high=1.0)  # Adam, AdamW: from here to b2; 0: always b2
    b2_steps: int = option(0, low=0)  # the steps that takes, by half a cosine; 0: all
    eps: float = option(1e-8, low=1e-30)
    weight_decay: float = option(0.0, low=0.0)
    decay_embeddings: bool = False  # weight decay of embeddings too, as in nanoGPT
    adam_lr: float = option(0.0, low=0.0)  # Muon: AdamW's rate for the other parameters; 0: lr
    clip_norm: float = option(0.0, low=0.0)  # global norm of this player's gradient; 0: off


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int = option(1000, low=0, resumable=True)  # schedules follow a new number
    log_every: int = option(20, low=1, resumable=True)
    accumulate: int = option(1, low=1)  # microbatches per step
    parallel_mode: str = option(
        "jit", choices=("jit", "pmap"), resumable=True
    )  # pmap: one process, data only
    compute_dtype: str = option("float32", choices=("float32", "bfloat16"))
    init_from: str = ""  # a workdir whose parameters the run begins with; "": fresh ones


@dataclasses.dataclass(frozen=True)
class Ema:
    """Moving averages of the parameters, used for evaluation and sampling."""

    halflife: float = option(0.0, low=0.0)  # in examples; 0: no exponential average
    rampup: float = option(0.05, low=0.0)  # warm-up: half-life ≤ rampup · examples seen; 0: none
    # Relative standard deviations of the power-function averages to keep (EDM2).
    sigma_rels: tuple[float, ...] = option((), low=1e-3, high=0.28)
    snapshot_every: int = option(0, low=0)  # steps between their snapshots, for --sigma_rel; 0: off


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation. Options of a modality's metrics are in a section of its own: `eval.image`."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    every: int = option(0, low=0)  # 0: only when asked
    batch_size: int = option(128, low=1, flag="Examples in a batch, over all devices.")
    batches: int = option(0, low=0, flag="Maximum number of held-out batches; 0: all.")
    num_samples: int = option(
        0,
        low=0,
        flag="Samples to draw for metrics of samples; 0: as many as were trained on, ≤ 10,000.",
    )
    likelihood_examples: int = option(
        0, low=0, flag="diffusion: held-out examples for the exact likelihood; 0: off."
    )
    seed: int = option(0, low=0)  # of the samples
    metrics: tuple[str, ...] = option(
        (), flag="Metric beside the modality's own: a name, or package.module:Class. Repeatable."
    )


@dataclasses.dataclass(frozen=True)
class Sample:
    """What every family's sampling has; each family adds its own options."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    every: int = option(0, low=0)  # 0: only when asked
    num: int = option(64, low=1)
    label: int = option(-1, low=-1, flag="Class of all samples; −1: every class in turn.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    RESUMABLE: ClassVar[bool] = True  # all of its fields

    every: int = option(500, low=0)  # 0: only at the end
    keep: int = option(2, low=1)
    on_error: str = option("stop", choices=("stop", "continue"))  # when the disk is full, say


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """When training counts as gone wrong, and whether to roll back."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    max_skipped: int = option(25, low=0)  # stop after this many non-finite steps in a row; 0: never
    # Losses more than this many robust standard deviations above the recent median are spikes;
    # 0 disables.
    spike_threshold: float = option(0.0, low=0.0)
    spike_history: int = option(64, low=2)  # steps that the median is taken over
    max_rollbacks: int = option(0, low=0)  # times to return to a checkpoint and skip the data since


@dataclasses.dataclass(frozen=True)
class Watchdog:
    """When another process of the run counts as lost, in seconds."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    peer_timeout: int = option(60, low=2)  # without a heartbeat of a process: it is dead
    stuck_timeout: int = option(1800, low=2)  # without progress of any process: the run is stuck


@dataclasses.dataclass(frozen=True)
class Config:
    """A run. `optim` maps each player to its block; a recipe with one block gives it to all."""

    seed: int
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
    anomaly: Anomaly
    watchdog: Watchdog
    plugins: tuple[str, ...]  # modules that register families, samplers, sources, … when imported
    mesh: str  # sizes of data, fsdp, sequence, tensor; "data=-1": all devices
    raw: dict[str, Any]  # the whole config as plain JSON values, every default written out

    @classmethod
    def parse(cls, config: Mapping[str, Any], types: Mapping[str, type]) -> "Config":
        """Checks `config` and returns its typed view.

        Args:
          config: the recipe, as nested mappings.
          types: the dataclasses of the sections `model`, `objective`, `sample`, and of `eval`
            with the options of modalities.

        Raises:
          UserError: for a key, type or value that cannot be, naming it in full.
        """
        sections = {**COMMON_SECTIONS, **types}
        known = {"seed", "plugins", "mesh", "optim", *sections}
        for key in config:
            if key not in known:
                raise UserError(f"the config has no key '{key}': {did_you_mean(key, known)}")
        parsed: dict[str, Any] = {
            k: parse(t, config.get(k, {}), k, named=k in NAMED) for k, t in sections.items()
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
        """Dotted names of the fields that may change when a run is resumed."""
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found = ["mesh"]
        for name, section in sections.items():
            if dataclasses.is_dataclass(section):
                found += marked(type(section), "resumable", name)
        return frozenset(found)

    def optim_of(self, player: str) -> Optim:
        """The optimizer block of `player`.

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
    anomaly=Anomaly,
    watchdog=Watchdog,
)


def parse_optim(value: Mapping[str, Any]) -> dict[str, Optim]:
    """One block (kept under the empty name) or a block per player."""
    if isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values()):
        return {player: parse(Optim, block, f"optim.{player}") for player, block in value.items()}
    return {"": parse(Optim, value, "optim")}


def jsonable(value: Any) -> Any:
    """Tuples become lists, as JSON would make them, so that configs compare equal."""
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, path + ".") if isinstance(value, Mapping) else {path: value}
    return flat


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """The fields in which two configs differ, each as one phrase.

    Args:
      old: plain values, such as `Config.raw`.
      new: likewise.
      ignored: dotted names of fields that may differ.
    """
    old, new = flatten(jsonable(old)), flatten(jsonable(new))
    phrases = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key not in ignored:
            phrases.append(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}")
    return phrases
