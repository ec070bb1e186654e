"""Config section `eval.image`: options of image metrics."""

import dataclasses
from typing import ClassVar

from aigc_jax.core.fields import option


@dataclasses.dataclass(frozen=True)
class ImageEval:
    """Options of image metrics."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    fidelity: bool = option(
        True,
        flag="Compare samples with real images, and with the training images to find copies.",
    )
    features: str = option(
        "classifier",
        nonempty=True,
        flag="Network whose features are compared: classifier, efficientnet-lite0 or"
        " inception:FILE (only Inception's distances are FID and KID).",
    )
    resize: str = option(
        "clean-fid",
        choices=("clean-fid", "torch-fidelity"),
        flag="Rule by which images are resized for a published network.",
    )
    split: str = option(
        "held-out", choices=("held-out", "train"), flag="Split whose images are the reference."
    )
    reference: str = option(
        "", flag="File of the reference's features; written if it does not exist."
    )
