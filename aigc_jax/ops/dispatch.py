"""Dispatch of primitives to implementations by platform.

A primitive has the implementation "reference", which defines it, and others with the same values
and gradients that are faster on some platform. The choice is made while a function is traced.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

# By primitive and platform; platforms that are not listed use "reference".
IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "activation": {"cpu": "custom_jvp", "gpu": "custom_jvp"},  # saves only its input
    "attention": {"cpu": "blockwise", "gpu": "cudnn", "tpu": "splash"},
    "convolution": {"cpu": "optimization_barrier"},
    "cross_entropy": {"cpu": "small_chunks"},
    "decoding": {"cpu": "by_layer", "gpu": "by_layer"},  # separate arrays per layer
    "dense": {"cpu": "optimization_barrier"},
    "depthwise": {"cpu": "shifted"},
    "grouped_convolution": {"cpu": "dense_blocks"},
    "layers": {"cpu": "rolled"},  # a loop over layers; "reference" unrolls up to 8
    "norm": {"cpu": "custom_jvp", "gpu": "custom_jvp"},
    "strided": {"cpu": "space_to_depth"},
}

_OVERRIDES: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("overrides", default={})  # noqa: B039
_CHOICES: contextvars.ContextVar[dict[str, set[str]] | None] = contextvars.ContextVar(
    "choices", default=None
)
_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def implementation(primitive: str) -> str:
    """Returns the name of the implementation to trace."""
    return _OVERRIDES.get().get(primitive) or IMPLEMENTATIONS[primitive].get(
        platform(), "reference"
    )


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": that of `compiling_for`, or of the default device."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]  # defined at run time
    name = _PLATFORM.get() or getattr(device, "platform", device) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Traces functions inside the block for another platform than that of the default device."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


@contextlib.contextmanager
def override(**implementations: str) -> Iterator[None]:
    """Sets the implementation of primitives for functions traced inside the block.

    A function that `jax.jit` has traced before keeps its implementations.

    Raises:
      KeyError: if there is no such primitive.
    """
    for primitive in implementations:
        IMPLEMENTATIONS[primitive]
    token = _OVERRIDES.set(_OVERRIDES.get() | implementations)
    try:
        yield
    finally:
        _OVERRIDES.reset(token)


def note_choice(primitive: str, name: str) -> None:
    """Records the implementation that a primitive uses, which may be a fallback."""
    choices = _CHOICES.get()
    if choices is not None:
        choices.setdefault(primitive, set()).add(name)


@contextlib.contextmanager
def trace_choices() -> Iterator[dict[str, set[str]]]:
    """Yields the implementations traced inside the block, by primitive (see `note_choice`)."""
    found: dict[str, set[str]] = {}
    token = _CHOICES.set(found)
    try:
        yield found
    finally:
        _CHOICES.reset(token)


def all_reference() -> contextlib.AbstractContextManager[None]:
    """Sets the implementation "reference" of every primitive."""
    return override(**dict.fromkeys(IMPLEMENTATIONS, "reference"))
