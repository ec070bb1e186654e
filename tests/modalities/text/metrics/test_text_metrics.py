"""Scores of generated texts: by hand, and against the libraries where these are at home (ASCII)."""

import itertools
import sys
import unicodedata

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenize

from aigc_jax.core.errors import UserError
from aigc_jax.modalities.text.metrics.text_metrics import bleu_tokenizer, diversity, score, tokens

ZERO = {"bleu": 0, "chrf": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0}
ASCII = st.text(st.characters(max_codepoint=127), max_size=80)
WORDS = st.sampled_from(["the", "cat", "The", "sat,", "on_a", "mat.", "Don't", "3.5", "-"])
LIKELY = st.lists(WORDS).map(" ".join)


@pytest.mark.parametrize(
    "text, words",
    [
        ("我爱北京，天安门。", "我 爱 北 京 天 安 门"),
        ("用GPT-4模型写1篇", "用 gpt 4 模 型 写 1 篇"),
        ("𠮷野家〇々", "𠮷 野 家 〇 々"),  # beyond the first plane; zero and the iteration mark
        ("今日はいい・ケーキ", "今 日 は い い ケ ー キ"),
        ("สวัสดี ๑๒", "ส วั ส ดี ๑๒"),
        ("Ёлка, наряжённая!", "ёлка наряжённая"),
        ("naïve cafe\u0301", "naïve café"),
        ("हिन्दी भाषा।", "हिन्दी भाषा"),  # the vowels are marks, which `\w` does not know
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("한국어 텍스트", "한국어 텍스트"),
        ("ＡＢＣ１２, ｹｰｷ", "abc12 ケ ー キ"),  # wide and narrow forms
        ("don't_stop 😀 ™", "don t stop tm"),
        ("", ""),
        (" \n。", ""),
    ],
)
def test_tokens_of_any_script(text, words):
    assert tokens(text) == words.split()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(ASCII, LIKELY))
def test_tokens_of_ascii_are_those_of_rouge_score(text):
    assert tokens(text) == tokenize.tokenize(text, stemmer=None)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_no_letter_or_digit_of_any_script_is_lost(text):
    kept = "".join(tokens(text))
    letters = filter(str.isalnum, unicodedata.normalize("NFKC", text).lower())
    assert "".join(letters) == "".join(filter(str.isalnum, kept))
    assert tokens(" ".join(tokens(text))) == tokens(text)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(LIKELY, LIKELY), min_size=1, max_size=4))
def test_scores_of_ascii_are_those_of_the_libraries(pairs):
    generated, references = (list(side) for side in zip(*pairs, strict=True))
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    rouge = [scorer.score(r, g) for g, r in pairs]
    expected = {
        "bleu": sacrebleu.corpus_bleu(generated, [references]).score,
        "chrf": sacrebleu.corpus_chrf(generated, [references]).score,
        **{k: 100 * sum(r[k].fmeasure for r in rouge) / len(rouge) for k in rouge[0]},
    }
    assert score(generated, references) == pytest.approx(expected, abs=1e-9)


def test_scores_of_chinese_by_hand():
    """Of 今天天气不好, 5 of 6 characters, 3 of 5 pairs, 2 of 4 and 1 of 3 are in the reference."""
    result = score(["今天天气不好"], ["今天天气很好"])
    assert result["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert result["rouge1"] == result["rougeL"] == pytest.approx(100 * 5 / 6)
    assert result["rouge2"] == pytest.approx(60)
    assert 0 < result["chrf"] < 100


def test_rouge_is_the_f_measure_and_order_counts_for_the_longest_common_subsequence():
    """Precision 3/4, recall 3/6; in the same order stand 2 of the 3."""
    result = score(["мать Сын дочь дом"], ["сын и Мать, и дочь ждут"])
    assert result["rouge1"] == pytest.approx(100 * 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))
    assert result["rougeL"] == pytest.approx(100 * 2 * (2 / 4) * (2 / 6) / (2 / 4 + 2 / 6))
    assert result["rouge2"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "春眠不觉晓，处处闻啼鸟。",
        "春はあけぼの。やうやう白く",
        "It was the best of times.",
        "Ёлка в лесу родилась",
    ],
)
def test_a_text_against_itself_is_perfect_and_against_another_nothing(text):
    assert score([text, text], [text, text]) == pytest.approx(dict.fromkeys(ZERO, 100))
    assert score([text], ["Ω0Ω0Ω0 Ψ1Ψ1Ψ1 Φ2Φ2Φ2 Δ3Δ3Δ3"]) == ZERO


@pytest.mark.parametrize(
    "references, name",
    [
        (["The cat sat."], "13a"),
        (["Кот сидел."], "13a"),
        (["한국어 텍스트"], "13a"),
        (["春眠不觉晓，处处闻啼鸟。"], "zh"),
        (["使用 Python 和 TensorFlow 编程", "OK"], "zh"),
        (["在 the middle of an English text"], "13a"),
        (["春はあけぼの。やうやう白くなりゆく山ぎは"], "char"),
        (["สวัสดีครับ"], "char"),
        (["", "。"], "13a"),
        ([], "13a"),
    ],
)
def test_bleu_tokenizer_follows_the_script_of_the_references(references, name):
    assert bleu_tokenizer(references) == name


@pytest.mark.parametrize("reference", ["春はあけぼの。やうやう白く", "春眠不觉晓，处处闻啼鸟。"])
def test_bleu_of_unspaced_text_counts_characters(reference):
    """Without a tokenizer of its own, a sentence would be one word: all or nothing."""
    assert 50 < score(["夏" + reference[1:]], [reference])["bleu"] < 100


def test_empty_texts_and_lists_have_nothing_in_common():
    assert score([], []) == score([""], [""]) == score([""], ["a b c d"]) == ZERO
    assert score(["a b c d"], [""]) == ZERO
    half = score(["a b c d", ""], ["a b c d", "a b c d"])
    assert half["rouge1"] == half["rouge2"] == half["rougeL"] == 50
    assert 0 < half["bleu"] < 100  # one corpus: the missing half costs the brevity penalty


def test_texts_must_go_together():
    with pytest.raises(UserError, match=r"2 .*1 references"):
        score(["a", "b"], ["a"])
    for texts in itertools.permutations(["ab", ["a", "b"]]):
        with pytest.raises(UserError, match="no list"):
            score(*texts)


@pytest.mark.parametrize("missing", ["sacrebleu", "rouge_score"])
def test_a_missing_library_is_named_with_the_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{missing}.*pip install 'aigc-jax\[eval\]'"):
        score(["a"], ["a"])
    assert diversity(["a"])["distinct_1"] == 1


def test_diversity_by_hand():
    """n-grams: a b, b a, a b, b a, a b in the first, none across texts; 天 is a word as any."""
    result = diversity(["A b a, b a b", "天天 a"])
    assert result["distinct_1"] == 3 / 9
    assert result["distinct_2"] == 4 / 7  # ab ba, 天天 天a
    assert result["distinct_3"] == 3 / 5  # aba bab, 天天a
    assert result["repetition"] == pytest.approx(
        1 / 3
    )  # abab baba abab; the second text is too short to count


def test_repetition_is_the_mean_over_texts():
    looping, plain = "the end " * 50, "one two three four five six"
    assert diversity([plain])["repetition"] == 0
    assert diversity([looping])["repetition"] == 1 - 2 / 97
    assert diversity([looping, plain, plain])["repetition"] == pytest.approx((1 - 2 / 97) / 3)
    assert diversity(["天地玄黄宇宙洪荒" * 10])["repetition"] == 1 - 8 / 77


@pytest.mark.parametrize("texts", [[], [""], ["。", " "]])
def test_diversity_of_nothing_is_zero(texts):
    assert set(diversity(texts).values()) == {0}
