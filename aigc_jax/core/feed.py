"""The feed: where the loop gets its batches."""

from typing import Any, Protocol

import numpy as np

HostBatch = dict[str, np.ndarray]


class Feed(Protocol):
    """A source of host batches with a position that is saved with the state.

    A data loader ignores the state that `next` is given; a feed of rollouts samples with it.

    Attributes:
      taken: batches delivered so far.
    """

    taken: int

    def next(self, state: Any) -> HostBatch:
        """The next batch of this process.

        Args:
          state: the train state as it stands, in the form of `CompiledStep`.
        """
        ...

    def position(self) -> dict[str, Any]:
        """Where the feed stands, as plain JSON values; every process asks and gets the same."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Continues after what `position` counts."""
        ...

    def skip_to(self, taken: int) -> None:
        """Continues after so many batches, without delivering those before."""
        ...

    def example_ids(self, batch: int) -> list[int]:
        """The source's examples in batch number `batch`; [] if unknown."""
        ...
