"""CHAIR: how many of the objects that a caption names are not in the picture?

    counts = [count(caption_of(picture, text, vocabulary, tokens=n)) for ...]
    chair(counts)["chair_i"], verdict(chair_difference(treated, untreated, seed=0))

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, with recall, precision, F1 and length beside
it: a method that lowers CHAIR by saying less, or by breaking the model, shows there.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np

from analysis.vision.objects import Mention, Vocabulary
from analysis.vision.pictures import Picture
from analysis.vision.ratios import Interval, Ratio, differences, intervals, relative_change
from probes.errors import HeadscopeError

LENGTH_CHANGE = 0.3  # captions longer or shorter by more than this share are another kind of caption
METRICS = ("chair_i", "chair_s", "recall", "precision", "f1", "tokens", "words", "objects")

Word = Literal["helps", "trades recall", "trades precision", "hurts", "no effect"]


@dataclass(frozen=True)
class Caption:
    """What a model said of a picture; `objects` are truly in it, `tokens` is how many were generated."""

    id: str
    text: str
    mentions: tuple[Mention, ...]
    objects: frozenset[str]
    tokens: int


@dataclass(frozen=True)
class CaptionCounts:
    """mentioned, hallucinated: mentions, repeated ones counted. distinct, found, true: objects, each counted once."""

    mentioned: int
    hallucinated: int
    distinct: int
    found: int
    true: int
    words: int
    tokens: int


@dataclass(frozen=True)
class Verdict:
    """What a change did, and whether captions became longer or shorter by more than LENGTH_CHANGE."""

    word: Word
    length_changed: bool


def caption_of(picture: Picture, text: str, vocabulary: Vocabulary, *, tokens: int) -> Caption:
    """A caption and its mentions. Raises HeadscopeError where the picture shows what the vocabulary lacks."""
    vocabulary.check(picture.names)
    return Caption(picture.id, text, tuple(vocabulary.mentions(text)), picture.names, tokens)


def count(caption: Caption) -> CaptionCounts:
    """The numbers that all metrics are made of. Mentions count regardless of negation, as in CHAIR."""
    named = [mention.name for mention in caption.mentions]
    return CaptionCounts(
        mentioned=len(named),
        hallucinated=sum(name not in caption.objects for name in named),
        distinct=len(set(named)),
        found=len(caption.objects.intersection(named)),
        true=len(caption.objects),
        words=len(caption.text.split()),
        tokens=caption.tokens,
    )


def chair(counts: Sequence[CaptionCounts]) -> dict[str, float]:
    """METRICS over all captions, pooled; where nothing is mentioned the shares of mentions are 0.

    chair_i    mentions of objects that are not there / mentions, repeated ones counted
    chair_s    captions with such a mention / captions
    recall     distinct objects mentioned and there / objects there
    precision  distinct objects mentioned and there / distinct objects mentioned
    f1         their harmonic mean
    tokens, words, objects   means per caption; objects counts mentions

    The first five lie in [0, 1]; papers print them times 100. Raises HeadscopeError without a caption.
    """
    return {name: ratio.value for name, ratio in _ratios(counts).items()}


def chair_interval(counts: Sequence[CaptionCounts], *, seed: int) -> dict[str, Interval]:
    """METRICS with 95 % bootstrap intervals over captions (Wilson's where all resamples of a share agree)."""
    return intervals(_ratios(counts), seed=seed)


def chair_difference(
    treated: Sequence[CaptionCounts], untreated: Sequence[CaptionCounts], *, seed: int
) -> dict[str, Interval]:
    """Treated minus untreated in METRICS, with paired bootstrap intervals, and "length_change".

    length_change: mean tokens treated / untreated - 1. Both sequences hold the same pictures in the same order;
    raises HeadscopeError where their numbers of captions or of true objects show that they do not.
    """
    if [one.true for one in treated] != [one.true for one in untreated]:
        raise HeadscopeError("A difference takes the same pictures in the same order, treated and untreated.")
    after, before = _ratios(treated), _ratios(untreated)
    length = relative_change(after["tokens"], before["tokens"], seed=seed)
    return {**differences(after, before, seed=seed), "length_change": length}


def verdict(difference: dict[str, Interval]) -> Verdict:
    """One word for a `chair_difference`; better and worse mean an interval clear of 0.

    helps             CHAIR_I or recall better; none of CHAIR_I, recall and F1 worse
    trades recall     CHAIR_I better, recall (or F1) worse: it says less
    trades precision  recall better, CHAIR_I (or F1) worse: it says more, right and wrong
    hurts             one of the three worse and none better
    no effect         neither
    """
    better = {name for name in ("recall", "f1") if difference[name].low > 0}
    worse = {name for name in ("recall", "f1") if difference[name].high < 0}
    better |= {"chair_i"} if difference["chair_i"].high < 0 else set()
    worse |= {"chair_i"} if difference["chair_i"].low > 0 else set()
    return Verdict(_word(better, worse), abs(difference["length_change"].value) > LENGTH_CHANGE)


def _word(better: set[str], worse: set[str]) -> Word:
    if not worse:
        return "helps" if better - {"f1"} else "no effect"
    if not better:
        return "hurts"
    if "recall" in worse or "chair_i" in better:
        return "trades recall"
    return "trades precision"


def _ratios(counts: Sequence[CaptionCounts]) -> dict[str, Ratio]:
    if not counts:
        raise HeadscopeError("CHAIR needs at least one caption.")
    table = np.array([astuple(one) for one in counts], dtype=float)
    mentioned, hallucinated, distinct, found, true, words, tokens = table.T
    captions = np.ones(len(counts))
    return {
        "chair_i": Ratio(hallucinated, mentioned),
        "chair_s": Ratio((hallucinated > 0).astype(float), captions),
        "recall": Ratio(found, true),
        "precision": Ratio(found, distinct),
        "f1": Ratio(2 * found, true + distinct, "f1"),
        "tokens": Ratio(tokens, captions, "mean"),
        "words": Ratio(words, captions, "mean"),
        "objects": Ratio(mentioned, captions, "mean"),
    }
