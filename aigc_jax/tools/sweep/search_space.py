"""Search space of a sweep: fields of a config with ranges of values, and the metric."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from aigc_jax.core.config import flatten, jsonable
from aigc_jax.core.errors import UserError, did_you_mean, shorten

MACHINE_FIELDS = ("mesh", "data.data_dir", "data.threads")  # may differ between machines


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of a field of the config: an interval, or a set of choices.

    Attributes:
      key: the field, such as "optim.lr".
      low, high: ends of the interval, if `choices` is empty; ints for an int field.
      log: whether to draw the logarithm uniformly.
      choices: the set of values.
    """

    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, text: str, config: Mapping[str, Any]) -> "Range":
        """Parses `KEY=a,b,c`, `KEY=low..high` or `KEY=low..high:log`.

        Args:
          text: the range.
          config: flat fields of the recipe, whose values determine the types.

        Raises:
          UserError: if the recipe has no such field, or the values are not of its type.
        """
        key, _, values = text.replace(" ", "").partition("=")
        if key not in config:
            raise UserError(f"--search={shorten(text)}: the config has no key '{shorten(key)}': "
                            f"{did_you_mean(shorten(key), config)}")  # fmt: skip
        kind = type(config[key])
        values, _, how = values.partition(":") if ".." in values else (values, "", "")
        try:
            if ".." in values:
                if kind not in (int, float) or how not in ("", "log"):
                    raise ValueError
                low, high = (kind(end) for end in values.split(".."))
                if not low < high or (how and low <= 0):
                    raise ValueError
                return cls(key, low, high, how == "log")
            choices = tuple(_value(word, kind) for word in values.split(","))
            if len(set(choices)) < max(2, len(choices)):
                raise ValueError
            return cls(key, choices=choices)
        except ValueError:
            raise UserError(
                f"--search={shorten(text)} is not a valid range for {key}={config[key]}: write"
                f" {key}=a,b,c, or for numbers {key}=low..high or {key}=low..high:log"
            ) from None

    def suggest(self, trial: Any) -> Any:
        """Draws a value with an `optuna.Trial`."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        whole = isinstance(self.low, int)
        draw = trial.suggest_int if whole else trial.suggest_float
        return draw(self.key, self.low, self.high, log=self.log)


def _value(word: str, kind: type) -> Any:
    """Converts a word to the field's type; ValueError if it cannot be."""
    if kind is bool:
        if word not in ("True", "False", "true", "false"):
            raise ValueError
        return word.capitalize() == "True"
    return kind(word) if kind in (int, float) and word else word


@dataclasses.dataclass(frozen=True)
class Search:
    """Definition of a search.

    Attributes:
      config: the recipe, as plain values.
      ranges: of the fields to search.
      metric: held-out metric to optimise.
      maximize: whether larger values of it are better.
    """

    config: dict[str, Any]
    ranges: tuple[Range, ...]
    metric: str = "loss"
    maximize: bool = False

    @classmethod
    def of(
        cls,
        config: ml_collections.ConfigDict,
        texts: Sequence[str],
        metric: str = "loss",
        maximize: bool = False,
    ) -> "Search":
        """Parses a search.

        Args:
          config: the recipe.
          texts: ranges as `Range.parse` takes them, or files with one per line.
          metric: held-out metric to optimise.
          maximize: whether larger values of it are better.

        Raises:
          UserError: for an invalid range, or a recipe that never evaluates.
        """
        fields = flatten(config.to_dict())
        if not fields.get("eval.every"):
            raise UserError(
                "trials are compared by evaluations, but eval.every is 0: set the period with"
                " --config.eval.every=STEPS"
            )
        ranges = tuple(Range.parse(line, fields) for text in texts for line in _lines(text))
        keys = [r.key for r in ranges]
        if not keys or len(set(keys)) < len(keys):
            raise UserError(
                "--search must name each field once: write --search=optim.lr=1e-4..1e-2:log"
            )
        return cls(config.to_dict(), ranges, metric, maximize)

    def describe(self) -> dict[str, Any]:
        """JSON values that must be equal on all machines of the search."""
        fields = {k: v for k, v in flatten(self.config).items() if not k.startswith(MACHINE_FIELDS)}
        return jsonable(dataclasses.asdict(self) | {"config": fields})

    def value(self, record: Mapping[str, Any]) -> float:
        """The metric of an evaluation; ±inf, the worst value, if it is not finite.

        Raises:
          UserError: if the run has no such metric.
        """
        if self.metric not in record:
            known = [k for k, v in record.items() if isinstance(v, (int, float)) and k != "step"]
            raise UserError(
                f"--metric={self.metric} is not evaluated: {did_you_mean(self.metric, known)}"
            )
        value = record[self.metric]
        worst = -math.inf if self.maximize else math.inf
        return worst if value is None else float(value)


def _lines(text: str) -> list[str]:
    """The lines of a file of ranges, or the text itself."""
    if "=" in text:
        return [text]
    try:
        with open(os.path.expanduser(text), encoding="utf-8") as f:
            lines = [line.partition("#")[0].strip() for line in f]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"--search={shorten(text)} is neither KEY=values nor a file of such lines ({e})"
        ) from e
    return [line for line in lines if line]
