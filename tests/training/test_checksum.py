"""Fingerprints: alike wherever an array lies, different if anything in it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.distributed.mesh import make_mesh, replicated
from aigc_jax.training.checksum import checksums

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool")


def bits_of(x):
    """An array's bits, as unsigned integers."""
    if x.dtype == bool:
        return x
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])


def arbitrary(dtype, shape, seed=0):
    """Any bits at all, NaNs among them."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    dtype = jnp.dtype(dtype)
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)


def one(x):
    return checksums([jnp.asarray(x)])[0]


def trees():
    return {dtype: arbitrary(dtype, (8, 4, 3)) for dtype in DTYPES}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data")], ids=str)
def test_checksums_do_not_depend_on_sharding(devices, spec):
    placed = jax.device_put(trees(), NamedSharding(make_mesh(f"data={devices}"), spec))
    assert checksums(placed) == checksums(trees())
    assert len(checksums(placed)) == len(DTYPES)


def test_they_are_numbers_that_json_keeps():
    found = checksums(jax.device_put(trees(), replicated(make_mesh("data=1"))))
    assert all(type(n) is int and 0 <= n < 2**32 for n in found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bit_of_any_element_counts(dtype):
    x = arbitrary(dtype, (2, 3, 4))
    before, seen = one(x), set()
    for index in np.ndindex(x.shape):
        for bit in range(1 if dtype == "bool" else 8 * x.dtype.itemsize):
            y = x.copy()
            if dtype == "bool":
                y[index] ^= True
            else:
                bits_of(y)[index] ^= np.array(1 << bit, bits_of(y).dtype)
            seen.add(one(y))
    assert before not in seen


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_that_change_places_count(dtype):
    """Also the largest and smallest, which differ in one bit only."""
    rng = np.random.default_rng(0)
    x = arbitrary(dtype, (6, 5)).ravel()
    if dtype != "bool":
        bits = bits_of(x)
        bits[15:] = bits[:15] ^ np.array(1 << (8 * x.dtype.itemsize - 1), bits.dtype)
    before = one(x)
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    for i, j in [*zip(range(15), range(15, 30), strict=True), *rng.permutation(pairs)[:60]]:
        if bits_of(x)[i] != bits_of(x)[j]:
            y = x.copy()
            y[[i, j]] = y[[j, i]]
            assert one(y) != before, (i, j)


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint32", "bfloat16", "uint8"])
def test_the_same_bit_of_two_elements_counts(dtype):
    """Two signs that flip, say: what one change adds to a sum, the other must not take away."""
    x = arbitrary(dtype, (40,))
    before = one(x)
    for bit in range(8 * x.dtype.itemsize):
        for i in range(1, len(x), 4):
            y = x.copy()
            bits_of(y)[[0, i]] ^= np.array(1 << bit, bits_of(y).dtype)
            assert one(y) != before, (bit, i)


def test_an_array_of_another_shape_or_order_counts():
    x = arbitrary("float32", (4, 6))
    assert one(x) != one(np.ascontiguousarray(x.T))
    assert one(x) != one(x[::-1].copy())
    assert one(np.float32([0.0])) != one(np.float32([-0.0]))


def test_scalars_and_empty_arrays():
    empty, scalars = [np.zeros((0,)), np.zeros((3, 0), np.uint8)], [np.int32(0), np.int32(7)]
    found = checksums(jax.tree.map(jnp.asarray, empty + scalars))
    assert found[0] == found[1] and found[2] != found[3]
    assert one(np.float32(1)) != one(np.float32(2)) and one(np.True_) != one(np.False_)
    x = np.zeros(3, np.float32)
    assert len(set(map(one, np.eye(3, dtype=np.float32)))) == 3 and one(x) not in map(one, [x + 1])
