"""Files of text samples."""

import os

from aigc_jax.modalities.text.sample_file import join_texts, save_texts


def test_save_texts_numbers_them(tmp_path):
    path = str(tmp_path / "deep" / "samples.txt")
    assert save_texts(["first\nline", "", "中文🙂"], path) == path
    text = (tmp_path / "deep" / "samples.txt").read_text(encoding="utf-8")
    assert text == "--- 1 ---\nfirst\nline\n--- 2 ---\n\n--- 3 ---\n中文🙂\n"
    assert text == join_texts(["first\nline", "", "中文🙂"]) + "\n"
    assert os.listdir(tmp_path / "deep") == ["samples.txt"]


def test_a_bare_file_name_is_saved_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_texts(["a"], "a.txt")
    assert (tmp_path / "a.txt").read_text().endswith("a\n")
