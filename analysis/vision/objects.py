"""Which objects does a text name, and where?

    Vocabulary.coco().mentions("Two mice and a hot dog")   # mouse at 4 to 8, hot dog at 15 to 22

The matching of Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018 (CHAIR), without its tagger:
synonyms count as the object they stand for, and of overlapping phrases the longest wins.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from analysis.vision.pictures import Picture
from analysis.vision.plurals import plurals
from probes.errors import HeadscopeError

_WORD = re.compile(r"[^\W_]+")
_BETWEEN = re.compile(r"[\s_‐‑-]+|['’]")  # what may stand between the words of one phrase: "hot-dog", "catcher's mitt"


@dataclass(frozen=True)
class Mention:
    """An object's name and the characters [start, stop) of the text that say it."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Vocabulary:
    """Object names, each with the synonyms that count as it.

    apart: phrases that hold an object's word and mean no object ("train track"); one that is a name or a synonym too
    is taken as that. silenced: a phrase, and the object whose mention anywhere in the text makes it count for nothing
    (CHAIR drops "seat" where "toilet" occurs).
    Raises HeadscopeError without any name, for a name without letters, and where two objects share a phrase.
    """

    names: Mapping[str, Sequence[str]]
    apart: Sequence[str] = ()
    silenced: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names:
            raise HeadscopeError("A vocabulary needs the name of at least one object.")
        _ = self._phrases

    @staticmethod
    def coco() -> "Vocabulary":
        """The 80 classes of COCO with our list of synonyms; numbers differ a little from those of CHAIR's own list."""
        return _coco()

    def mentions(self, text: str) -> list[Mention]:
        """Every mention in the order of the text, repeated ones included.

        Letter case and plurals do not matter, word boundaries do. A mention counts whatever is said about the object:
        "There is no dog" mentions a dog and "an orange cat" an orange, as in CHAIR.
        """
        words = [(word.group().casefold(), word.start(), word.end()) for word in _WORD.finditer(text)]
        found: list[tuple[Mention, tuple[str, ...]]] = []
        at = 0
        while at < len(words):
            length = self._longest_at(words, at, text)
            if length:
                phrase = tuple(word for word, _, _ in words[at : at + length])
                name = self._phrases[phrase]
                if name is not None:
                    found.append((Mention(name, words[at][1], words[at + length - 1][2]), phrase))
            at += max(1, length)
        said = {mention.name for mention, _ in found}
        return [mention for mention, phrase in found if self._silencers.get(phrase) not in said]

    def check(self, names: Iterable[str]) -> None:
        """Raises HeadscopeError for objects that the vocabulary lacks: no text could mention them."""
        if lacking := sorted(set(names) - set(self.names)):
            raise HeadscopeError(
                f"The vocabulary lacks {_listed(lacking)}: give a vocabulary with every object's name."
            )

    def _longest_at(self, words: Sequence[tuple[str, int, int]], at: int, text: str) -> int:
        longest = 0
        phrase: tuple[str, ...] = ()
        for length in range(1, min(self._most_words, len(words) - at) + 1):
            word, start, _ = words[at + length - 1]
            if length > 1 and not _BETWEEN.fullmatch(text[words[at + length - 2][2] : start]):
                break
            phrase = (*phrase, word)
            if phrase in self._phrases:
                longest = length
        return longest

    @cached_property
    def _phrases(self) -> dict[tuple[str, ...], str | None]:
        """Words of a phrase -> object's name, or None for a phrase apart. What is written wins over a plural made."""
        written: dict[tuple[str, ...], str | None] = {}
        for name, synonyms in self.names.items():
            for phrase in (name, *synonyms):
                words = _split(phrase)
                if not words:
                    raise HeadscopeError(f"{phrase!r} names no object: a name is made of letters or digits.")
                if (other := written.setdefault(words, name)) != name:
                    raise HeadscopeError(f"{phrase!r} stands for both {other!r} and {name!r}; it can stand for one.")
        for phrase in self.apart:
            written.setdefault(_split(phrase), None)
        made = dict(written)
        for words, stands_for in written.items():
            for plural in plurals(words):
                made.setdefault(plural, stands_for)
        return made

    @cached_property
    def _silencers(self) -> dict[tuple[str, ...], str]:
        found: dict[tuple[str, ...], str] = {}
        for phrase, name in self.silenced.items():
            words = _split(phrase)
            found |= dict.fromkeys((words, *plurals(words)), name)
        return found

    @cached_property
    def _most_words(self) -> int:
        return max(map(len, self._phrases))


def vocabulary_of(pictures: Iterable[Picture]) -> Vocabulary:
    """The objects that are, or are expected, in any of these pictures; COCO's classes among them get synonyms.

    An object that no picture shows is then never counted as invented: where the full list of names is known, use that.
    """
    return named(name for picture in pictures for name in (*picture.names, *picture.likely))


def named(names: Iterable[str]) -> Vocabulary:
    """A vocabulary of these names, in alphabetical order; those that are classes of COCO get COCO's synonyms."""
    coco = Vocabulary.coco()
    ordered = sorted(set(names))
    taken = {_split(name) for name in ordered}
    synonyms = {
        name: [word for word in coco.names.get(name.casefold(), ()) if _split(word) not in taken] for name in ordered
    }
    return Vocabulary(synonyms, apart=coco.apart, silenced=coco.silenced)


@cache
def _coco() -> Vocabulary:
    read: dict[str, Any] = json.loads(files("data").joinpath("coco/classes.json").read_text(encoding="utf-8"))
    return Vocabulary(read["classes"], apart=read["apart"], silenced=read["silenced"])


def _split(phrase: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORD.findall(phrase))


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
