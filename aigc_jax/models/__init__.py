"""Pure Flax (linen) modules: arrays in, arrays out; no loss, no optimizer, no I/O."""
