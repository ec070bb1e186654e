"""Runs the command line as `python -m aigc_jax.main`."""

from aigc_jax.cli.main import run

if __name__ == "__main__":
    run()
