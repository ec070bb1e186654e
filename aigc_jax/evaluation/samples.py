"""Draws samples from the state that is evaluated, for metrics."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.capabilities import SupportsTextGeneration
from aigc_jax.core.objective import Objective
from aigc_jax.core.request import TokenCallback
from aigc_jax.core.state import TrainState
from aigc_jax.data.dataset import Dataset, draw_examples
from aigc_jax.data.source import SupportsRowStreams
from aigc_jax.experiment.build import Run
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.experiment.restore import guidance_model_of
from aigc_jax.inference.stop_strings import StopStringStreamer


class SampleDrawer:
    """What drawing samples needs that does not depend on the state.

    Args:
      run: its parts.
      dataset: the data; samples are given the conditions of its training examples.
    """

    def __init__(self, run: Run, dataset: Dataset):
        self.run, self._dataset = run, dataset
        self._conditions: dict[str, np.ndarray] = {}
        self._known = 0

    def of(self, state: TrainState) -> "StateSampler":
        """The sampler of one state, from `sampling_state`."""
        return StateSampler(self, state)

    @functools.cached_property
    def guidance_model(self) -> Any:
        """The model that guides this one, if the config names one; restored once."""
        return guidance_model_of(self.run, self.run.config.sample)

    def conditions(self, num: int) -> dict[str, np.ndarray]:
        """Conditions of `num` training examples, drawn evenly, in turn if there are fewer."""
        train, names = self._dataset.train, self.run.objective.conditions
        if not names or isinstance(train, SupportsRowStreams):
            return {}
        if self._known < min(num, len(train)):
            examples = draw_examples(train, num)
            fields = [name for name in names if name in examples[0]]
            self._conditions = {k: np.stack([e[k] for e in examples]) for k in fields}
            self._known = len(examples)
        index_N = np.arange(num) % self._known
        return {name: value[index_N] for name, value in self._conditions.items()}


@dataclasses.dataclass
class StateSampler:
    """Draws samples of one state; see `modalities.metric.Generate`.

    Attributes:
      drawer: what does not depend on the state.
      state: from `sampling_state`.
    """

    drawer: SampleDrawer
    state: TrainState
    _shared: np.ndarray | None = None

    def __call__(
        self,
        num: int,
        *,
        options: Any = None,
        conditions: Mapping[str, Any] | None = None,
        init: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """`num` samples of a request; texts end at the strings `options.stop`."""
        run = self.drawer.run
        options = run.config.sample if options is None else options
        request = make_request(
            run.objective,
            options,
            num,
            conditions=conditions,
            init=init,
            token_callback=_stop_callback(run.objective, options),
            guidance_model=self.drawer.guidance_model,
        )
        seed = run.config.eval.seed if seed is None else seed
        return generate(
            run.objective, self.state.sampling_params, self.state.mutables, request, seed
        )

    def shared(self, num: int) -> np.ndarray:
        """The first `num` samples with conditions of training examples; drawn only once.

        Sample n does not depend on how many are drawn, up to rounding.
        """
        if self._shared is None or len(self._shared) < num:
            self._shared = self(num, conditions=self.drawer.conditions(num))
        return self._shared[:num]


def _stop_callback(objective: Objective, options: Any) -> TokenCallback | None:
    """What ends texts at the strings `options.stop`, if there are any."""
    if isinstance(objective, SupportsTextGeneration) and options.stop:
        return StopStringStreamer(objective.tokenizer, options.stop)
    return None
