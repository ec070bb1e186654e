"""Models from elsewhere and to elsewhere: Hugging Face's folders, GGUF files, PEFT's adapters."""

from aigc_jax.interop.gguf.gguf import read_gguf
from aigc_jax.interop.peft.export import write_adapter
from aigc_jax.interop.peft.reading import Adapter, read_adapter
from aigc_jax.interop.transformers.export import write_folder
from aigc_jax.interop.transformers.folder import Imported, read_folder

__all__ = [
    "Adapter",
    "Imported",
    "read_adapter",
    "read_folder",
    "read_gguf",
    "write_adapter",
    "write_folder",
]
