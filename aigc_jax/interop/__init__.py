"""Models of other libraries: folders of transformers, diffusers and PEFT, and GGUF files."""

from aigc_jax.interop.diffusers.read_folder import ImportedImages, read_diffusers_folder
from aigc_jax.interop.diffusers.write_folder import write_diffusers_folder
from aigc_jax.interop.gguf.read_file import read_gguf_file
from aigc_jax.interop.peft.read_folder import ImportedAdapter, read_peft_folder
from aigc_jax.interop.peft.write_folder import write_peft_folder
from aigc_jax.interop.transformers.read_folder import ImportedText, read_hf_folder
from aigc_jax.interop.transformers.write_folder import write_hf_folder

__all__ = [
    "ImportedAdapter",
    "ImportedImages",
    "ImportedText",
    "read_diffusers_folder",
    "read_gguf_file",
    "read_hf_folder",
    "read_peft_folder",
    "write_diffusers_folder",
    "write_hf_folder",
    "write_peft_folder",
]
