"""Our speed and memory beside those of PyTorch, transformers and diffusers: docs/performance.md.

    pip install 'aigc-jax[peers]'
    python -m benchmarks.peers --page=docs/performance.md

In each case both sides do the same work. The peers' models are their published ones or those of
their own examples; ours have the same number of parameters, and the same weights and outputs where
weights can be converted, which is checked before anything is timed. The two sides take turns in one
process (`aigc_jax.tools.bench.timing.interleaved`), with as many threads each.
"""
