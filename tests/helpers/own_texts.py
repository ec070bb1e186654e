"""Small files of text, as people have them."""

import json

from aigc_jax.core.config import Data
from aigc_jax.modalities import sources


def load(source, **options):
    return sources.load_source(Data(source=str(source), **options))


def write_lines(path, records):
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records))
    return path


def write_jsonl(tmp_path, labels, **more):
    """Texts that name their labels."""
    rows = [{"text": f"text {i} of {y}", "label": y, **more} for i, y in enumerate(labels)]
    return f"jsonl:{write_lines(tmp_path / 'd.jsonl', rows)}"


def chat(question, answer):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def write_chats(tmp_path, count=10):
    path = write_lines(tmp_path / "c.jsonl", [chat(f"what is {i}?", f"{i}.") for i in range(count)])
    return f"messages:{path}"


def write_conll(path, text):
    path.write_text(text)
    return f"conll:{path}"


SENTENCES = "Anna\tB-person\nschläft\tO\n\nin\tO\nNew\tB-location\nYork\tI-location\n"
