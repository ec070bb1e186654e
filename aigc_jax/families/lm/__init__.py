"""Models of token sequences: language models, masked language models, classifiers, taggers."""
