"""Training, evaluation and sampling as functions, called by the command line and notebooks."""
