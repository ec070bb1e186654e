"""Training of a language model, compared with GPT-2 of transformers in nanoGPT's settings."""

from aigc_jax import interop
from benchmarks.peers import ours
from benchmarks.peers.sides import Sides, carried, check_close, check_count, size_of
from benchmarks.peers.theirs import lm as theirs
from benchmarks.peers.work import Text

CHECKED = 3  # steps whose losses must be equal


def training(size: Text) -> Sides:
    """Sides of a train step, with the same initial weights and batches."""
    peer = theirs.Training(size)
    params = {"model": carried(peer.model, interop.read_hf_folder).params}
    mine = ours.Training(ours.lm(size), ours.lm_batches(size), params)
    number = check_count(mine.parameters, size_of(peer.model))
    for _ in range(CHECKED):
        mine(1)
        peer(1)
        note = check_close("loss", mine.loss, peer.loss.item(), 1e-4)
    return Sides(mine, peer, f"{number}; {note} after {CHECKED} steps")
