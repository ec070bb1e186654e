"""Training, evaluating and sampling as functions: what the command line and a notebook call."""
