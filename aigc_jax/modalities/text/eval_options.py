"""Config section `eval.text`: options of text metrics."""

import dataclasses
from typing import ClassVar

from aigc_jax.core.fields import option


@dataclasses.dataclass(frozen=True)
class TextEval:
    """Options of text metrics."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    num_generations: int = option(
        0,
        low=0,
        flag="Held-out texts to continue and compare with their references; needs the extra"
        " 'eval'; 0 disables.",
    )
