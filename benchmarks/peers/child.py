"""A process that trains one side: `python -m benchmarks.peers.child ours lm`.

It prints a line after its first step, and after three more steps its peak memory in bytes.
"""

import sys

from aigc_jax.core.files import most_memory  # imports nothing large
from benchmarks.peers.work import MEDIUM, UNET_BATCH, UNET_SHAPE

STEPS = 3


def main(side: str, work: str) -> None:
    training = {"ours": ours, "theirs": theirs}[side](work)
    training(1)
    print("the first step", flush=True)
    training(STEPS)
    print(most_memory(), flush=True)


def ours(work: str):
    from benchmarks.peers import ours

    if work == "lm":
        return ours.Training(ours.lm(MEDIUM), ours.lm_batches(MEDIUM))
    return ours.Training(ours.unet(), ours.image_batches(UNET_BATCH, UNET_SHAPE))


def theirs(work: str):
    if work == "lm":
        from benchmarks.peers.theirs import lm

        return lm.Training(MEDIUM)
    from benchmarks.peers.theirs import unet

    return unet.Training()


if __name__ == "__main__":
    main(*sys.argv[1:])
