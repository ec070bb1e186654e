"""Sources, preparation, tokenizers and the input pipeline."""
