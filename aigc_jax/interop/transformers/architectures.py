"""The architectures of transformers that can be read and written, one table each (`table`)."""

from aigc_jax.interop.transformers.gpt2_bert import BERT, GPT2
from aigc_jax.interop.transformers.llamas import GEMMA, GEMMA2, LLAMA, MISTRAL, QWEN2, QWEN3

# In the order in which one is chosen for a model of ours: the plainest that can hold it.
ARCHITECTURES = {
    a.hf: a for a in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, BERT, GEMMA, GEMMA2)
}  # fmt: skip
