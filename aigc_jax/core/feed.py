"""Feed: source of batches for the training loop."""

from typing import Any, Protocol

import numpy as np

HostBatch = dict[str, np.ndarray]


class Feed(Protocol):
    """A source of host batches with a position that is saved with the state.

    A data loader ignores the state passed to `next`; a feed of rollouts samples with it.

    Attributes:
      taken: batches delivered so far.
    """

    taken: int

    def next(self, state: Any) -> HostBatch:
        """Returns the next batch of this process.

        Args:
          state: the current train state, in the form of `CompiledStep`.
        """
        ...

    def position(self) -> dict[str, Any]:
        """Returns the position as plain JSON values; all processes call it and get the same."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a `position`."""
        ...

    def skip_to(self, taken: int) -> None:
        """Continues after `taken` batches, without delivering those before."""
        ...

    def example_ids(self, batch: int) -> list[int]:
        """Returns indices of the source's examples in batch number `batch`; [] if unknown."""
        ...
