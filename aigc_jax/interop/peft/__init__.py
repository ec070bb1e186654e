"""LoRA adapters in the form of `peft`."""
