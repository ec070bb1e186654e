"""Which form of a primitive runs where: the one table that knows platforms.

A primitive has a plain form that is its definition, "reference", and others that are equal to it in
value and gradient and faster somewhere. The form is chosen while a function is traced.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

# What a platform is not named for has the reference form.
IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "activation": {"cpu": "custom_jvp", "gpu": "custom_jvp"},  # saves only its input
    "attention": {"cpu": "blockwise", "gpu": "cudnn", "tpu": "splash"},
    "convolution": {"cpu": "optimization_barrier"},
    "cross_entropy": {"cpu": "small_chunks"},
    "decoding": {"cpu": "by_layer", "gpu": "by_layer"},  # each layer's arrays by themselves
    "dense": {"cpu": "optimization_barrier"},
    "depthwise": {"cpu": "shifted"},
    "grouped_convolution": {"cpu": "dense_blocks"},
    "layers": {"cpu": "rolled"},  # a loop over layers; reference: up to 8 are unrolled
    "norm": {"cpu": "custom_jvp", "gpu": "custom_jvp"},
    "strided": {"cpu": "space_to_depth"},
}

_FORCED: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("forms", default={})  # noqa: B039
_HEARD: contextvars.ContextVar[dict[str, set[str]] | None] = contextvars.ContextVar(
    "heard", default=None
)
_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def implementation(primitive: str) -> str:
    """The name of the form that is to be traced now."""
    return _FORCED.get().get(primitive) or IMPLEMENTATIONS[primitive].get(platform(), "reference")


def platform() -> str:
    """cpu, gpu or tpu: that of the default device, unless `compiling_for` says otherwise."""
    device = jax.config.jax_default_device
    name = _PLATFORM.get() or getattr(device, "platform", device) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """What is traced inside is for another platform than that of the default device."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


@contextlib.contextmanager
def override(**forms: str) -> Iterator[None]:
    """What is traced inside has these forms, by primitive.

    A function that `jax.jit` has traced already keeps the forms that it was traced with.

    Raises:
      KeyError: if there is no such primitive.
    """
    for primitive in forms:
        IMPLEMENTATIONS[primitive]
    token = _FORCED.set(_FORCED.get() | forms)
    try:
        yield
    finally:
        _FORCED.reset(token)


def note_choice(primitive: str, name: str) -> None:
    """A primitive says which form it has taken, where the chosen one cannot do everything."""
    heard = _HEARD.get()
    if heard is not None:
        heard.setdefault(primitive, set()).add(name)


@contextlib.contextmanager
def trace_choices() -> Iterator[dict[str, set[str]]]:
    """What is traced inside says here which forms it takes, by primitive (see `took`)."""
    found: dict[str, set[str]] = {}
    token = _HEARD.set(found)
    try:
        yield found
    finally:
        _HEARD.reset(token)


def all_reference() -> contextlib.AbstractContextManager[None]:
    """The plain form of every primitive."""
    return override(**dict.fromkeys(IMPLEMENTATIONS, "reference"))
