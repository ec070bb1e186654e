"""Models from elsewhere and to elsewhere: Hugging Face's folders, GGUF files, PEFT's adapters."""

from aigc_jax.interop.export import write_folder
from aigc_jax.interop.folder import Imported, read_folder
from aigc_jax.interop.gguf import read_gguf
from aigc_jax.interop.peft import write_adapter
from aigc_jax.interop.peft_reading import Adapter, read_adapter

__all__ = [
    "Adapter",
    "Imported",
    "read_adapter",
    "read_folder",
    "read_gguf",
    "write_adapter",
    "write_folder",
]
