"""Image models in the form of Hugging Face `diffusers`."""
