"""The config section `eval.image`: options of the metrics of images."""

import dataclasses
from typing import ClassVar

from aigc_jax.core.fields import option


@dataclasses.dataclass(frozen=True)
class ImageEval:
    """Options of the metrics of images."""

    RESUMABLE: ClassVar[bool] = True  # all of its fields

    # Compare samples with real images, and with the training images to detect copies.
    fidelity: bool = True
    # Network whose features are compared; only Inception's distances are FID and KID.
    features: str = option(
        "classifier", nonempty=True, flag="classifier, efficientnet-lite0 or inception:FILE."
    )
    # Rule by which images are resized for a published network.
    resize: str = option(
        "clean-fid",
        choices=("clean-fid", "torch-fidelity"),
        flag="clean-fid or torch-fidelity: how images are resized for a published network.",
    )
    # Split whose images are the reference.
    split: str = option(
        "held-out", choices=("held-out", "train"), flag="held-out or train: the reference images."
    )
    # File of the reference's features; written if it does not exist.
    reference: str = option("", flag="File of the reference's features, read or written.")
