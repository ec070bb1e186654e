"""Tokenizers of every kind at a size that is made in no time."""

import functools

import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from aigc_jax.modalities.text.hf_tokenizer import END, IM_END, IM_START, LibraryTokenizer
from aigc_jax.modalities.text.tokenizers import ByteTokenizer, CharTokenizer

DOCUMENTS = [
    "The cat sat on the mat, and the cat saw the other cat.\n" * 3,
    "人工智能生成内容。人工智能，四个模型：人工、智能。\n",
    "naïve café, 🙂🙂 a\u0301 \u2028 and \x00\r\n",
]
CHARACTERS = sorted(set("".join(DOCUMENTS)))
# Texts of all kinds, with much of what goes wrong.
WORDS = ["the", " cat", "▁", "##", "<0xE4>", "人工", "🙂", "e\u0301", "�", "\n", "  ", END,
         IM_START, IM_END, "[CLS]", "[MASK]", "</s>"]  # fmt: skip
TEXT = st.lists(st.one_of(st.text(max_size=5), st.sampled_from(WORDS)), max_size=12).map("".join)


@functools.cache
def trained(size=400):
    return LibraryTokenizer.train(DOCUMENTS, size)


def wordpiece():
    """As BERT's: [CLS] and [SEP] around a text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "'", "a", "cat", "sat", "##s",
             "##ting", "人", "工"]  # fmt: skip
    vocabulary = {word: i for i, word in enumerate(words)}
    library = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.add_special_tokens(words[:5])
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    library.decoder = decoders.WordPiece()
    return library


def byte_fallback():
    """As Llama 2's: ▁ for spaces, bytes for unknown characters, <s> before a text."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "c", "a", "t",
             "人", "▁c", "▁ca", "▁cat"]  # fmt: skip
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return library


def metaspace():
    """As T5's: pieces of a unigram model, </s> after a text."""
    words = ["<pad>", "</s>", "<unk>", "▁", "▁the", "▁cat", "s", "a", "▁▁", "人", "mat"]
    model = models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=2)
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens(words[:3])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    library.decoder = decoders.Metaspace()
    return library


def suffixes():
    """As the first GPT's: </w> ends a word."""
    words = ["</s>", "<unk>", "c", "a", "a</w>", "t</w>", "ca", "cat</w>", "人</w>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = [("c", "a"), ("ca", "t</w>")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>")
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens(words[:2])
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.BPEDecoder("</w>")
    return library


def holes():
    """Numbers without a token, and no decoder."""
    vocabulary = {"<unk>": 1, "</s>": 3, "a": 5, "cat": 6, "人": 9}
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    library.add_special_tokens(["<unk>", "</s>"])
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return library


def nested():
    """Byte-level, decoded by a sequence of decoders."""
    library = trained().to_library()
    library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return library


LIBRARIES = {f.__name__: f for f in (wordpiece, byte_fallback, metaspace, suffixes, holes, nested)}
KINDS = ("byte", "char", "trained", *LIBRARIES)


@functools.cache
def kind(name):
    """A tokenizer of one of `KINDS`."""
    if name in LIBRARIES:
        library = LIBRARIES[name]()
        ends = [library.token_to_id(t) for t in ("</s>", "[SEP]", END)]
        return LibraryTokenizer(library, separator=next(i for i in ends if i is not None))
    made = {"byte": ByteTokenizer, "char": lambda: CharTokenizer(CHARACTERS), "trained": trained}
    return made[name]()
