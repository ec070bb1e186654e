"""What to sample."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aigc_jax.core.conditions import Conditions

# Told the new tokens of all rows so far (N, t); returns the rows that need no more (N,).
TokenCallback = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """N samples to draw.

    Attributes:
      options: the family's own dataclass of sampling options.
      index_N: the number of each sample among all that are asked for: a sample's random key is
        numbered by it.
      conditions: what is given, by name; rows of N.
      init: what to begin with, by name; rows of N: "image" and "inpaint_mask" (N, H, W), True where
        to draw anew; "tokens" (N, P) and "length" (N,) of prompts.
      token_callback: sees the tokens while they are drawn.
      guidance_model: another model that guides this one (autoguidance).
    """

    options: Any
    index_N: np.ndarray
    conditions: Conditions = dataclasses.field(default_factory=dict)
    init: dict[str, Any] = dataclasses.field(default_factory=dict)
    token_callback: TokenCallback | None = None
    guidance_model: Any = None

    def __len__(self) -> int:
        return len(self.index_N)

    def rows(self, row_R: np.ndarray) -> "SampleRequest":
        """The request for some of the samples."""
        index_N, conditions, init = jax.tree.map(
            lambda x: x[row_R], (self.index_N, self.conditions, self.init)
        )
        return dataclasses.replace(self, index_N=index_N, conditions=conditions, init=init)
