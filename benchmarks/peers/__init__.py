"""Our speed and memory beside those of PyTorch, transformers and diffusers: docs/performance.md.

    pip install 'aigc-jax[peers]'
    python -m benchmarks.peers --page=docs/performance.md

Every case is one piece of work that both sides do: the peers' models are theirs, as published or as
their own examples build them; ours has as many parameters, and the same weights and outputs where
those can be loaded, which is checked before anything is timed. The two sides take turns in one
process (`aigc_jax.tools.bench.timing.interleaved`), with as many threads each.
"""
