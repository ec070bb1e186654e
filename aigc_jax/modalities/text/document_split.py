"""Splits documents into training and held-out ones."""

from collections.abc import Sequence

import numpy as np


def cut_document(document: str, pieces: int) -> list[str]:
    """Cuts a document at line ends into pieces of about equal length."""
    lines = document.splitlines(keepends=True)
    if len(lines) < pieces:  # few lines: cut between characters
        lines = [document[i : i + 64] for i in range(0, len(document), 64)]
    size, length = len(document) / pieces, 0
    result: list[str] = []
    current: list[str] = []
    for line in lines:
        current.append(line)
        length += len(line)
        if length >= size * (len(result) + 1):
            result.append("".join(current))
            current = []
    return [*result, "".join(current)] if current else result


def split_documents(
    documents: Sequence[str], fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Holds out random documents with at least a fraction of the text.

    Documents longer than a twentieth of the text are cut into pieces first, so that a single long
    file can be split too.
    """
    total = sum(map(len, documents))
    pieces = [p for d in documents for p in cut_document(d, max(round(20 * len(d) / total), 1))]
    held_out, length = set(), 0
    for i in np.random.default_rng(seed).permutation(len(pieces)).tolist():
        if length >= fraction * total:
            break
        held_out.add(i)
        length += len(pieces[i])
    train = [d for i, d in enumerate(pieces) if i not in held_out]
    return train, [d for i, d in enumerate(pieces) if i in held_out]


def last_documents(documents: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Holds out the last fraction of the documents, or of the characters of a single document."""
    if len(documents) == 1:
        (text,) = documents
        end = int(len(text) * (1 - fraction))
        return [text[:end]], [text[end:]]
    end = int(len(documents) * (1 - fraction))
    return list(documents[:end]), list(documents[end:])
