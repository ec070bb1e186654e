"""Generated texts against references, and how much they repeat themselves.

BLEU and chrF are sacrebleu's, ROUGE is rouge-score's, both of the extra `eval`. The libraries split
texts at spaces, and rouge-score drops what is not ASCII; `tokens` and `bleu_tokenizer` are what
makes their numbers mean something for Chinese, and for any other script.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

from aigc_jax.core.errors import UserError

ROUGE = ("rouge1", "rouge2", "rougeL")
REPEATED = 4  # the n of the n-grams whose repetition counts

# Chinese characters: the iteration mark, zero and the numerals, then extension A, the main block,
# the compatibility block and the planes 2 and 3.
_HAN = "\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAN += "\U00020000-\U0003ffff"
# The other scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, bopomofo.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf"
_UNSPACED += "\u31f0-\u31ff\U0001aff0-\U0001b16f"
_ALONE = f"(?:[{_HAN}]|(?![\\W\\d_])[{_UNSPACED}])"


def score(generated: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """How close generated texts are to their references, each number from 0 to 100.

    Args:
      generated, references: N texts each, the i-th of both belonging together.

    Returns:
      `bleu`: of the whole corpus, up to 4-grams (Papineni et al. 2002), as sacrebleu's command line
      gives it with the tokenizer that `bleu_tokenizer` names. Texts that together have no 4-gram
      get 0. `chrf`: of the whole corpus, character n-grams up to 6, β = 2 (Popović 2015).
      `rouge1`, `rouge2`, `rougeL`: the F-measures of common 1-grams, 2-grams and the longest common
      subsequence of `tokens` (Lin 2004), without stemming, the mean over texts; rougeL takes time
      and memory in proportion to the product of both lengths. An empty text has nothing in common
      with any other: 0. All are 0 where there are no texts.

    Raises:
      UserError: without the libraries, or if the texts do not go together.
    """
    if isinstance(generated, str) or isinstance(references, str):
        raise UserError("a single text is no list of texts: put it in brackets")
    if len(generated) != len(references):
        raise UserError(
            f"there are {len(generated)} generated texts for {len(references)} references:"
            " give one reference for each"
        )
    sacrebleu, rouge_scorer = _libraries()
    if not generated:
        return dict.fromkeys(("bleu", "chrf", *ROUGE), 0.0)
    generated, references = list(generated), list(references)
    # `force` only silences a warning about texts that look tokenized.
    bleu = sacrebleu.BLEU(tokenize=bleu_tokenizer(references), force=True)
    chrf = sacrebleu.CHRF()
    scorer = rouge_scorer.RougeScorer(list(ROUGE), tokenizer=_Tokenizer())
    pairs = [scorer.score(r, g) for g, r in zip(generated, references, strict=True)]
    return {
        # Rounding may leave a perfect score a little above 100.
        "bleu": min(float(bleu.corpus_score(generated, [references]).score), 100.0),
        "chrf": min(float(chrf.corpus_score(generated, [references]).score), 100.0),
        **{k: 100 * sum(float(p[k].fmeasure) for p in pairs) / len(pairs) for k in ROUGE},
    }


def diversity(texts: Iterable[str]) -> dict[str, float]:
    """How varied texts are, each number from 0 to 1.

    Returns:
      `distinct_1`, `distinct_2`, `distinct_3`: different n-grams of `tokens` by all n-grams, over
      all texts together (Li et al. 2016); it falls with the amount of text, so it only compares
      between equal amounts. `repetition`: the share of a text's 4-grams that stood in it before,
      1 − different / all, the mean over the texts that have any (seq-rep-4, Welleck et al. 2020).
      A number is 0 where there are no n-grams.
    """
    different: dict[int, set[tuple[str, ...]]] = {1: set(), 2: set(), 3: set()}
    count = dict.fromkeys(different, 0)
    repeated = []
    for text in texts:
        token_T = tokens(text)
        for n, seen in different.items():
            seen.update(_ngrams(token_T, n))
            count[n] += max(len(token_T) - n + 1, 0)
        windows = len(token_T) - REPEATED + 1
        if windows > 0:
            repeated.append(1 - len(set(_ngrams(token_T, REPEATED))) / windows)
    return {
        **{f"distinct_{n}": len(seen) / max(count[n], 1) for n, seen in different.items()},
        "repetition": sum(repeated) / max(len(repeated), 1),
    }


def tokens(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and symbols.

    In scripts without spaces between words (Chinese, Japanese, Thai, …) each character is one; in
    all others a word is a run of letters and digits, with the marks that belong to them. Wide and
    narrow, composed and decomposed forms of a character are the same (NFKC). Of ASCII text these
    are the tokens of rouge-score without stemming.
    """
    return _pattern().findall(unicodedata.normalize("NFKC", text).lower())


def bleu_tokenizer(references: Iterable[str]) -> str:
    """The name of sacrebleu's tokenizer for texts like these.

    "13a", the default, if most of the `tokens` are words between spaces; else "zh" for Chinese, and
    "char" for Japanese and others, whose letters "zh" would leave together. Japanese is known by
    its kana: where fewer than nine characters of ten are Chinese ones.
    """
    words = [token for text in references for token in tokens(text)]
    alone = [token for token in words if re.match(_ALONE, token)]
    if 2 * len(alone) <= len(words):
        return "13a"
    han = sum(bool(re.match(f"[{_HAN}]", token)) for token in alone)
    return "zh" if 10 * han >= 9 * len(alone) else "char"


class _Tokenizer:
    """What rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


@functools.cache
def _pattern() -> re.Pattern[str]:
    """What matches a token: a character that stands alone, or a run of others."""
    marked = f"[{_marks()}]*"
    return re.compile(f"{_ALONE}{marked}|(?:(?!{_ALONE})[^\\W_]{marked})+")


def _marks() -> str:
    """The characters that go on with a word though `\\w` has no room for them, for a [] of `re`.

    Combining marks, which are the vowels of many scripts, and the two joiners. Beyond the planes 0
    and 1 there are only the variation selectors.
    """
    joiners, selectors = "\u200c\u200d", "\U000e0100-\U000e01ef"
    marks = (chr(c) for c in range(0x300, 0x20000))
    return "".join(c for c in marks if unicodedata.category(c)[0] == "M") + joiners + selectors


def _ngrams(token_T: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(token_T[i:] for i in range(n)), strict=False)


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import sacrebleu
        from rouge_score import rouge_scorer
    except ImportError as e:
        raise UserError(
            f"BLEU, chrF and ROUGE need the package {e.name}: pip install 'aigc-jax[eval]'"
        ) from e
    return sacrebleu, rouge_scorer
