"""How much of one continuation is in another: the Jaccard similarity of their content words."""

import re

# Our own list: words that say little of what a text is about.
_STOP_WORDS = """
a an the this that these those and or but if so then than as of in on at by for from to with into up out about
i you he she it we they me him her us them my your his its our their who which what there here
is are was were be been being am do does did done has have had having will would can could shall should may might must
not no nor also just very all any some each more most s t
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
# A number with its decimals or minutes, or a word with what follows its apostrophe.
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")


def content_words(text: str) -> frozenset[str]:
    """The different words and numbers of a text in lower case, stop words left out."""
    return frozenset(_WORD.findall(text.lower())) - STOP_WORDS


def similarity(first: str, second: str) -> float:
    """Content words that both texts have, by those that either has, in [0, 1]; 1 where neither has any."""
    one, other = content_words(first), content_words(second)
    return len(one & other) / len(one | other) if one | other else 1.0
