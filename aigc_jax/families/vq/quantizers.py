"""Quantizers of a discrete autoencoder, and the statistics of their codes.

The state of a quantizer consists of sums. Those of the current step are kept apart from those
before it, and join them when the next step begins: within a step all microbatches and devices see
one codebook, and what they add is the sum over the batch, however it is cut. (`pmap` averages
sums over devices; only ratios are read from them.)
Shapes: N vectors, Z their size, K codes, M slots.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.registry import Registry
from aigc_jax.ops import vector_quantization as q

State = dict[str, jax.Array]
USED = 0.01  # of an equal share of all vectors: a code with less counts as unused
POOL = 4  # slots for random vectors, per code
ROUNDS = 10  # of k-means


class Quantizer(Protocol):
    """Vectors → codes, and back.

    Attributes:
      num_codes: K.
      size: Z.
    """

    num_codes: int
    size: int

    def init(self) -> State:
        """The state before the first step, with the running counts `uses` (K,)."""
        ...

    def begin_step(self, state: State, step: jax.Array) -> State:
        """The state of `step`: at its beginning, the sums of the step before join the others."""
        ...

    def finalize(self, state: State) -> State:
        """The state with the last step's sums joined: for evaluation and sampling."""
        ...

    def quantize(self, state: State, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Vectors (…, Z) quantised straight through, their codes (…) and commitment costs (…)."""
        ...

    def vectors(self, state: State, code: jax.Array) -> jax.Array:
        """The vectors (…, Z) of codes (…)."""
        ...

    def accumulate(
        self,
        state: State,
        z_NZ: jax.Array,
        code_N: jax.Array,
        weight_N: jax.Array,
        draw_N2: jax.Array,
    ) -> State:
        """The state with a batch added to the sums of its step.

        Args:
          state: from `begin_step`.
          z_NZ: the vectors that have been quantised.
          code_N: their codes.
          weight_N: the weight of each.
          draw_N2: two uniform random numbers for each.
        """
        ...


class FSQ:
    """Finite scalar quantisation (Mentzer et al. 2023), without a codebook; it counts its codes.

    Args:
      levels: of each of the Z numbers of a vector.
      decay: of the counts, per step.
    """

    def __init__(self, levels: tuple[int, ...], decay: float):
        self.levels, self.decay = levels, decay
        self.num_codes, self.size = math.prod(levels), len(levels)

    def init(self) -> State:
        zeros_K = jnp.zeros(self.num_codes)
        return {"step": jnp.int32(-1), "uses": zeros_K, "new_counts": zeros_K + 0}

    def begin_step(self, state: State, step: jax.Array) -> State:
        return _if_new(self.finalize, state, step)

    def finalize(self, state: State) -> State:
        uses_K = _decayed(self.decay, state, "uses", "new_counts")
        return {**state, "uses": uses_K, "new_counts": jnp.zeros_like(uses_K)}

    def quantize(self, state: State, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        vectors, code = q.fsq(z, self.levels)
        return vectors, code, jnp.zeros(code.shape)

    def vectors(self, state: State, code: jax.Array) -> jax.Array:
        return q.fsq_decode(code, self.levels)

    def accumulate(
        self,
        state: State,
        z_NZ: jax.Array,
        code_N: jax.Array,
        weight_N: jax.Array,
        draw_N2: jax.Array,
    ) -> State:
        count_K = jax.ops.segment_sum(weight_N, code_N, self.num_codes)
        return {**state, "new_counts": state["new_counts"] + count_K}


class VQ:
    """Nearest codes of a codebook that follows the vectors (van den Oord et al. 2017).

    - The codebook is the decayed mean of each code's members (their appendix A.1): online k-means.
    - It starts by k-means on the first batch: that batch is autoencoded without quantisation, and
      random vectors of it become the codebook before the second.
    - A code with too small a share is dead, and moves to a random vector of the last batch
      (Dhariwal et al. 2020).
    - Vectors are short, and of length 1 if asked (Yu et al. 2022, ViT-VQGAN).

    Args:
      num_codes: K.
      size: Z.
      decay: of the sums, per step.
      dead_code_threshold: share of an equal share below which a code is dead; 0: none ever is.
      l2_normalize: whether vectors are scaled to length 1.
    """

    def __init__(
        self,
        num_codes: int,
        size: int,
        decay: float,
        dead_code_threshold: float,
        l2_normalize: bool,
    ):
        self.num_codes, self.size, self.decay = num_codes, size, decay
        self.dead_code_threshold, self.l2_normalize = dead_code_threshold, l2_normalize

    def init(self) -> State:
        k, z, m = self.num_codes, self.size, POOL * self.num_codes
        floats = {
            "codebook": (k, z), "uses": (k,), "counts": (k,), "sums": (k, z),
            "new_counts": (k,), "new_sums": (k, z), "pool": (m, z), "pool_weight": (m,),
        }  # fmt: skip
        zeros = {name: jnp.zeros(shape) for name, shape in floats.items()}
        return {"step": jnp.int32(-1), "started": jnp.int32(0), **zeros}

    def begin_step(self, state: State, step: jax.Array) -> State:
        """As in `Quantizer`; the codebook moves, too."""
        return _if_new(self.finalize, state, step)

    def finalize(self, state: State) -> State:
        filled_M = state["pool_weight"] > 0
        random_MZ = state["pool"] / jnp.where(filled_M, state["pool_weight"], 1)[:, None]
        if self.l2_normalize:  # a mean of several vectors is shorter
            random_MZ = q.l2_normalize(random_MZ)
        moved = jax.lax.cond(
            state["started"] > 0, self._follow, self._start, state, random_MZ, filled_M
        )
        left = ("new_counts", "new_sums", "pool", "pool_weight")
        return {**state, **moved, **{name: jnp.zeros_like(state[name]) for name in left}}

    def _start(self, state: State, random_MZ: jax.Array, filled_M: jax.Array) -> State:
        """The codebook by k-means; zeros as long as no vector has been seen."""
        weight_M = filled_M.astype(jnp.float32)
        codebook_KZ, members_K = q.kmeans(
            random_MZ, weight_M, self.num_codes, ROUNDS, self.l2_normalize
        )
        # The weight of the batch: all its vectors had code 0, as there was no codebook.
        total = state["new_counts"].sum()
        counts_K = members_K / jnp.maximum(weight_M.sum(), 1) * total
        return {
            "started": filled_M.any().astype(jnp.int32),
            "codebook": codebook_KZ,
            "uses": state["uses"],
            "counts": counts_K,
            "sums": codebook_KZ * counts_K[:, None],
        }

    def _follow(self, state: State, random_MZ: jax.Array, filled_M: jax.Array) -> State:
        """The codebook after a batch: decayed means, and dead codes at random vectors of it."""
        counts_K = _decayed(self.decay, state, "counts", "new_counts")
        sums_KZ = _decayed(self.decay, state, "sums", "new_sums")
        mean_KZ = sums_KZ / jnp.where(counts_K > 0, counts_K, 1)[:, None]
        mean_KZ = q.l2_normalize(mean_KZ) if self.l2_normalize else mean_KZ
        codebook_KZ = jnp.where(counts_K[:, None] > 0, mean_KZ, state["codebook"])
        equal = counts_K.sum() / self.num_codes
        dead_K = counts_K < self.dead_code_threshold * equal
        # The first dead code takes the first filled slot, and so on while there are some.
        slot_M = jnp.argsort(~filled_M, stable=True)
        rank_K = jnp.cumsum(dead_K) - 1
        reset_K1 = (dead_K & (rank_K < filled_M.sum()))[:, None]
        fresh_KZ = random_MZ[slot_M[jnp.clip(rank_K, 0, len(slot_M) - 1)]]
        codebook_KZ = jnp.where(reset_K1, fresh_KZ, codebook_KZ)
        return {
            "started": state["started"],
            "codebook": codebook_KZ,
            "uses": _decayed(self.decay, state, "uses", "new_counts"),
            # With an equal share to begin with, a new code has time to find members.
            "counts": jnp.where(reset_K1[:, 0], equal, counts_K),
            "sums": jnp.where(reset_K1, fresh_KZ * equal, sums_KZ),
        }

    def quantize(self, state: State, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As in `Quantizer`; the commitment cost is the mean squared quantisation error."""
        z, started = self._vectors(z), state["started"] > 0
        flat_NZ = jax.lax.stop_gradient(z).reshape(-1, self.size)
        code = q.nearest_code(flat_NZ, state["codebook"]).reshape(z.shape[:-1])
        code = jnp.where(started, code, 0)
        vectors = jnp.where(started, state["codebook"][code], jax.lax.stop_gradient(z))
        return q.straight_through(z, vectors), code, ((z - vectors) ** 2).mean(-1)

    def vectors(self, state: State, code: jax.Array) -> jax.Array:
        return state["codebook"][code]

    def accumulate(
        self,
        state: State,
        z_NZ: jax.Array,
        code_N: jax.Array,
        weight_N: jax.Array,
        draw_N2: jax.Array,
    ) -> State:
        z_NZ = jax.lax.stop_gradient(self._vectors(z_NZ))
        count_K, sum_KZ = q.segment_sums(z_NZ, code_N, weight_N, self.num_codes)
        sum_MZ, weight_M = q.reservoir(z_NZ, weight_N, draw_N2, len(state["pool_weight"]))
        new = {"new_counts": count_K, "new_sums": sum_KZ, "pool": sum_MZ, "pool_weight": weight_M}
        return {**state, **{name: state[name] + value for name, value in new.items()}}

    def _vectors(self, z: jax.Array) -> jax.Array:
        return q.l2_normalize(z) if self.l2_normalize else z


# `VQConfig` → the quantizer; a package can register its own.
QUANTIZERS: Registry[Callable[[Any], Quantizer]] = Registry(
    "quantizer",
    "objective.quantizer",
    {
        "fsq": lambda c: FSQ(c.levels, c.decay),
        "vq": lambda c: VQ(c.num_codes, c.code_dim, c.decay, c.dead_code_threshold, c.l2_normalize),
    },
)


def _if_new(finalize: Callable[[State], State], state: State, step: jax.Array) -> State:
    """The state finalized and marked with the step, if it is of another one."""
    step = jnp.asarray(step, jnp.int32)
    begin = lambda state: {**finalize(state), "step": step}  # noqa: E731
    return jax.lax.cond(state["step"] == step, lambda state: state, begin, state)


def _decayed(decay: float, state: State, name: str, new: str) -> jax.Array:
    """The mean per step of a sum, in which a step's part fades as others follow."""
    return decay * state[name] + (1 - decay) * state[new]


def usage_metrics(uses_K: jax.Array) -> Metrics:
    """How evenly the codes have been used over about the last 1 / (1 − decay) steps.

    `codes_used`: the share of codes with 1 % of an equal share or more; `code_perplexity`: the
    number of equally frequent codes of the same entropy.
    """
    total = uses_K.sum()
    share_K = uses_K / jnp.where(total > 0, total, 1)
    used = (share_K * len(share_K) >= USED).mean()
    return {"codes_used": Mean.of(used), "code_perplexity": Mean.of(perplexity(share_K))}


def perplexity(share_K: Any) -> Any:
    """exp of the entropy of frequencies that sum to 1."""
    return jnp.exp(-(share_K * jnp.log(jnp.where(share_K > 0, share_K, 1))).sum())
