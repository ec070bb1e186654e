"""Text: tokenizers, readers, examples, packing."""
