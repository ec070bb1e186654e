"""From a config to the parts of a run, and from a workdir back to them."""
