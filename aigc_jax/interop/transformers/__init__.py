"""Language models in the form of Hugging Face `transformers`."""
