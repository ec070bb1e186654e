"""The shared train step and loop, optimizers, EMA, checkpoints and metric logs; family-agnostic."""
