"""What a sweep searches: fields of a config, the values they may take, and the metric."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from aigc_jax.core.config import flatten, jsonable
from aigc_jax.core.errors import UserError, did_you_mean, shorten

OWN = ("mesh", "data.data_dir", "data.threads")  # what each machine may say for itself


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field of the config may take: all between two, or one of several.

    Attributes:
      key: the field, such as "optim.lr".
      low, high: the ends, if `choices` is empty; whole numbers for a field that is one.
      log: draw the logarithm evenly.
      choices: the values.
    """

    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, text: str, config: Mapping[str, Any]) -> "Range":
        """`KEY=a,b,c`, `KEY=low..high` or `KEY=low..high:log`.

        Args:
          text: what was written.
          config: all fields of the recipe, flat; their values say of which type each is.

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
                f"--search={shorten(text)} is no range of values like {key}={config[key]}: write"
                f" {key}=a,b,c, or for numbers {key}=low..high or {key}=low..high:log"
            ) from None

    def suggest(self, trial: Any) -> Any:
        """Optuna's choice."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        whole = isinstance(self.low, int)
        draw = trial.suggest_int if whole else trial.suggest_float
        return draw(self.key, self.low, self.high, log=self.log)


def _value(word: str, kind: type) -> Any:
    """A word as a value of the field's type; what is no number stays a word, as flags take it."""
    if kind is bool:
        if word not in ("True", "False", "true", "false"):
            raise ValueError
        return word.capitalize() == "True"
    return kind(word) if kind in (int, float) and word else word


@dataclasses.dataclass(frozen=True)
class Search:
    """What is searched, and by which metric.

    Attributes:
      config: the recipe, as plain values.
      ranges: the fields to change.
      metric: of the held-out data.
      maximize: whether more of it is better.
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
        """A search of what `texts` say: `KEY=…`, or files with such lines.

        Raises:
          UserError: if one says nothing that can be searched, or the recipe evaluates never.
        """
        fields = flatten(config.to_dict())
        if not fields.get("eval.every"):
            raise UserError(
                "trials are compared by what they evaluate, but eval.every is 0: say how often with"
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
        """What must be the same on all machines, as JSON values."""
        fields = {k: v for k, v in flatten(self.config).items() if not k.startswith(OWN)}
        return jsonable(dataclasses.asdict(self) | {"config": fields})

    def value(self, record: Mapping[str, Any]) -> float:
        """The metric of an evaluation; worse than all others if it is not finite.

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
