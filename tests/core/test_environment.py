"""What is set before JAX starts, and what is left as the user has it."""

import os
import subprocess
import sys

import pytest

from aigc_jax.core import environment

FLAG = " ".join(["=".join(environment.CONVOLUTIONS)])


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """Nothing is set, and home is a fresh folder."""
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", *environment.CACHE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "jax")
    return monkeypatch


@pytest.mark.parametrize(
    "version, platforms, given, expected",
    [
        ((0, 10, 2), "", "", FLAG),
        ((0, 12, 0), "cpu", "--xla_dump_to=here", f"--xla_dump_to=here {FLAG}"),
        (
            (0, 12, 0),
            "cuda,cpu",
            f"{environment.CONVOLUTIONS[0]}=dot",
            f"{environment.CONVOLUTIONS[0]}=dot",
        ),
        ((0, 12, 0), "tpu", "", ""),
        ((0, 10, 1), "", "", ""),
        ((0, 13, 0), "", "", ""),
        ((), "", "", ""),
    ],
)
def test_the_flag_is_set_for_versions_that_know_it(bare, version, platforms, given, expected):
    bare.setattr(environment, "jaxlib_version", lambda: version)
    bare.setenv("JAX_PLATFORMS", platforms)
    bare.setenv("XLA_FLAGS", given)
    environment.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == expected


def test_programs_are_kept_in_the_users_cache_folder(bare, tmp_path):
    environment.set_compilation_cache()
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert folder.startswith(str(tmp_path / "cache" / "aigc_jax")) and os.path.isdir(folder)
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(4 << 30)


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_cache_folder_of_the_user_is_kept(bare, tmp_path, given):
    bare.setenv("JAX_COMPILATION_CACHE_DIR", given)
    environment.set_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == given
    assert not os.path.exists(tmp_path / "cache")


def test_unwritable_home_disables_the_cache(bare, tmp_path):
    (tmp_path / "file").write_text("")
    bare.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    environment.set_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


CHECK = """
import {first}
import {second}
import os, aigc_jax, jax
aigc_jax.configure()
jax.jit(lambda x: x * 2).lower(1.0).compile()
assert "ynn_fusion" in os.environ["XLA_FLAGS"]
print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
"""


@pytest.mark.parametrize("order", [("aigc_jax", "jax"), ("jax", "aigc_jax")])
def test_the_installed_jax_takes_it_all(bare, tmp_path, order):
    code = CHECK.format(first=order[0], second=order[1])
    env = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert got.returncode == 0, got.stderr
    folder, size = got.stdout.split()
    assert folder.startswith(str(tmp_path)) and int(size) == 4 << 30
    assert [name for name in os.listdir(folder) if name.endswith("-cache")]


@pytest.mark.parametrize("given", ["", "MALLOC_ARENA_MAX"])
def test_freed_memory_is_kept_unless_the_user_has_his_own_way(bare, given):
    asked = []

    class Library:
        def mallopt(self, *what):
            asked.append(what)

    bare.setattr(environment.ctypes, "CDLL", lambda name: Library())
    bare.setattr(environment.sys, "platform", "linux")
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        bare.delenv(name)
    if given:
        bare.setenv(given, "2")
    environment.set_allocator()
    assert asked == ([] if given else list(environment.MALLOC))


def test_a_c_library_without_such_a_wish_is_left_alone(bare):
    bare.setattr(environment.ctypes, "CDLL", lambda name: object())
    environment.set_allocator()
