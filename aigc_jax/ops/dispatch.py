"""Implementations of primitives by platform: the one table that knows platforms.

A primitive has an implementation "reference", which is its definition, and others with equal values
and gradients that are faster on some platform. One is chosen when a function is traced.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

# Platforms that are not listed use "reference".
IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "activation": {"cpu": "custom_jvp", "gpu": "custom_jvp"},  # saves only its input
    "attention": {"cpu": "blockwise", "gpu": "cudnn", "tpu": "splash"},
    "convolution": {"cpu": "optimization_barrier"},
    "cross_entropy": {"cpu": "small_chunks"},
    "decoding": {"cpu": "by_layer", "gpu": "by_layer"},  # unstacked arrays per layer
    "dense": {"cpu": "optimization_barrier"},
    "depthwise": {"cpu": "shifted"},
    "grouped_convolution": {"cpu": "dense_blocks"},
    "layers": {"cpu": "rolled"},  # a scan; reference: up to 8 layers are unrolled
    "norm": {"cpu": "custom_jvp", "gpu": "custom_jvp"},
    "strided": {"cpu": "space_to_depth"},
}

_OVERRIDES: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("overrides", default={})  # noqa: B039
_CHOICES: contextvars.ContextVar[dict[str, set[str]] | None] = contextvars.ContextVar(
    "choices", default=None
)
_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def implementation(primitive: str) -> str:
    """Returns the name of the implementation to trace now."""
    return _OVERRIDES.get().get(primitive) or IMPLEMENTATIONS[primitive].get(
        platform(), "reference"
    )


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": of `compiling_for`, or of the default device."""
    device = getattr(jax.config, "jax_default_device", None)
    name = _PLATFORM.get() or getattr(device, "platform", device) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Chooses implementations for another platform than that of the default device."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


@contextlib.contextmanager
def override(**names: str) -> Iterator[None]:
    """Traces with these implementations, by primitive.

    A function that `jax.jit` has traced already keeps the implementations of that trace.

    Raises:
      KeyError: if there is no such primitive.
    """
    for primitive in names:
        IMPLEMENTATIONS[primitive]
    token = _OVERRIDES.set(_OVERRIDES.get() | names)
    try:
        yield
    finally:
        _OVERRIDES.reset(token)


def note_choice(primitive: str, name: str) -> None:
    """Records the implementation that a primitive used, where the chosen one is partial."""
    choices = _CHOICES.get()
    if choices is not None:
        choices.setdefault(primitive, set()).add(name)


@contextlib.contextmanager
def trace_choices() -> Iterator[dict[str, set[str]]]:
    """Collects the implementations used while tracing, by primitive (see `note_choice`)."""
    found: dict[str, set[str]] = {}
    token = _CHOICES.set(found)
    try:
        yield found
    finally:
        _CHOICES.reset(token)


def all_reference() -> contextlib.AbstractContextManager[None]:
    """Traces with the reference implementation of every primitive."""
    return override(**dict.fromkeys(IMPLEMENTATIONS, "reference"))
