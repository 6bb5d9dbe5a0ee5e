"""Which words of two texts differ?"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

Piece = tuple[str, bool]  # a stretch of text, and whether the other text lacks it
LONGEST = 4000  # characters that are compared; what follows counts as the same


def differences(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, compared by words and signs; white space belongs to what is before it."""
    one, two = _words(first[:LONGEST]), _words(second[:LONGEST])
    bare_one, bare_two = ([word.strip() for word in words] for words in (one, two))
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    for tag, a, b, c, d in SequenceMatcher(None, bare_one, bare_two, autojunk=False).get_opcodes():
        for side, words in zip(pieces, (one[a:b], two[c:d]), strict=True):
            _add(side, words, tag != "equal")
    for side, text in zip(pieces, (first, second), strict=True):
        _add(side, [text[LONGEST:]], False)
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+\s*|[^\w\s]\s*|\s+", text)


def _add(pieces: list[Piece], words: Sequence[str], differs: bool) -> None:
    if text := "".join(words):
        pieces.append((text, differs))
