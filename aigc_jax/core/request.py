"""SampleRequest: options, conditions and initial values of samples to draw."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aigc_jax.core.conditions import Conditions

# Called with all new tokens so far (N, t); returns bool (N,), True for rows to finish.
TokenCallback = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """N samples to draw.

    Attributes:
      options: the family's own dataclass of sampling options.
      index_N: index of each sample in the full request, from which its random key is derived.
      conditions: conditions by name, with N rows.
      init: initial values by name, with N rows: "image" and "inpaint_mask" (N, H, W), True where
        the image is to be replaced; "tokens" (N, P) and "length" (N,) of prompts.
      token_callback: receives tokens while they are generated.
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
        """Returns the request for a subset of the samples."""
        index_N, conditions, init = jax.tree.map(
            lambda x: x[row_R], (self.index_N, self.conditions, self.init)
        )
        return dataclasses.replace(self, index_N=index_N, conditions=conditions, init=init)
