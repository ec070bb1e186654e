"""Meshes from text."""

import pytest

from aigc_jax.errors import UserError
from aigc_jax.parallel.mesh import make_mesh, parse_mesh


def test_sizes():
    assert parse_mesh("data=-1", 8) == {"data": 8}
    assert parse_mesh(" data = 2 ", 8) == {"data": 2}
    assert dict(make_mesh("data=2").shape) == {"data": 2}


@pytest.mark.parametrize("text", ["", "data", "data=x", "data=0", "data=-2", "data=9", "date=2"])
def test_what_is_no_mesh(text):
    with pytest.raises(UserError, match="mesh="):
        parse_mesh(text, 8)
