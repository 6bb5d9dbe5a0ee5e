"""POPE: is there a dog in the image? Yes or no, for objects that are there and as many that are not.

    asked = questions(pictures, vocabulary, "adversarial", seed=0)
    pope([Answer(question, parse(text)) for question, text in zip(asked, texts)]).f1

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023. Half of the questions are to
be answered with yes, so a yes ratio above one half is a bias towards yes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

import numpy as np

from analysis.vision.objects import Vocabulary
from analysis.vision.pictures import Picture
from analysis.vision.ratios import Interval, Ratio, differences
from probes.errors import HeadscopeError

Split = Literal["random", "popular", "adversarial"]
SPLITS: tuple[Split, ...] = get_args(Split)
PER_PICTURE = 6
TEMPLATE = "Is there a {} in the image?"
NEGATIVE_WORDS = frozenset({"No", "not", "no"})


@dataclass(frozen=True)
class Question:
    """One question; present: the true answer is yes."""

    picture_id: str
    object: str
    present: bool
    split: Split
    text: str


@dataclass(frozen=True)
class Answer:
    """A question and whether the answer was yes."""

    question: Question
    yes: bool


@dataclass(frozen=True)
class Pope:
    """Scores over n questions, yes being the positive class: shares in [0, 1] with Wilson's 95 % intervals.

    The intervals take the questions of a picture for independent. Precision is 0 where no answer is yes.
    """

    accuracy: Interval
    precision: Interval
    recall: Interval
    f1: Interval
    yes_ratio: Interval
    n: int


def questions(
    pictures: Sequence[Picture],
    vocabulary: Vocabulary,
    split: Split,
    *,
    seed: int,
    per_picture: int = PER_PICTURE,
    reference: Sequence[Picture] | None = None,
    article: bool = False,
) -> list[Question]:
    """For each picture its first per_picture / 2 distinct objects, each followed by one that is absent.

    The absent object is, by split,
    random       any of the vocabulary
    popular      the most frequent of the reference pictures (by default, of these pictures)
    adversarial  the one that most often accompanies the object just asked for, in the reference pictures
    and never one already asked for; where none is left that the reference shows, a random one. Ties go by the
    vocabulary's order. Fewer questions where a picture shows, or lacks, fewer objects; none where it shows none (the
    original takes pictures of 3 objects or more).

    A question keeps the original's "a" before any name; article=True writes "an" where it belongs.
    Raises HeadscopeError for an odd per_picture, an unknown split, objects that the vocabulary lacks, and where no
    question can be asked.
    """
    if split not in SPLITS:
        raise HeadscopeError(f"POPE has no split {split!r}; it has {', '.join(SPLITS)}.")
    if per_picture < 2 or per_picture % 2:
        raise HeadscopeError(f"POPE asks 2, 4, 6 ... questions per picture, half of them absent; not {per_picture}.")
    known = pictures if reference is None else reference
    for picture in (*pictures, *known):
        vocabulary.check(picture.names)
    order = list(vocabulary.names)
    ranked = _ranked(known, order, split)
    asked = []
    for picture in pictures:
        for name, present in _objects(picture, order, ranked, Random(f"{seed}/{split}/{picture.id}"), per_picture):
            text = (TEMPLATE.replace(" a ", " an ") if article and _takes_an(name) else TEMPLATE).format(name)
            asked.append(Question(picture.id, name, present, split, text))
    if not asked:
        raise HeadscopeError("POPE needs a picture with an object in it, and an object that is not in it.")
    return asked


def parse(answer: str) -> bool:
    """Yes, unless the first sentence, up to ".", has one of the words No, not, no once its commas are dropped.

    As the original does it: "NO", "nope" and an empty answer are yes. Words end at white space of any kind; the
    original's end at spaces only, so that a "No" before a line break is yes there.
    """
    return NEGATIVE_WORDS.isdisjoint(answer.split(".")[0].replace(",", "").split())


def pope(answers: Sequence[Answer]) -> Pope:
    """Scores of one split. Raises HeadscopeError without an answer."""
    scores = {name: ratio.wilson() for name, ratio in _ratios(answers).items()}
    return Pope(**scores, n=len(answers))


def pope_difference(treated: Sequence[Answer], untreated: Sequence[Answer], *, seed: int) -> dict[str, Interval]:
    """Treated minus untreated in every score, with paired bootstrap intervals over pictures.

    Raises HeadscopeError where the questions are not the same, in the same order.
    """
    if [one.question for one in treated] != [one.question for one in untreated]:
        raise HeadscopeError("A difference takes answers to the same questions in the same order.")
    return differences(_ratios(treated), _ratios(untreated), seed=seed)


def _ranked(reference: Sequence[Picture], order: Sequence[str], split: Split) -> Mapping[str, list[str]]:
    """For each object, the absent ones to ask for after it, best first."""
    if split == "random":
        return {}
    together: dict[str, Counter[str]] = {name: Counter() for name in order}
    frequency = Counter(name for picture in reference for name in picture.names)
    for picture in reference if split == "adversarial" else ():
        for name in picture.names:
            together[name].update(picture.names - {name})
    return {
        name: sorted((other for other in order if counted[other]), key=lambda other: -counted[other])
        for name, counted in (together.items() if split == "adversarial" else ((name, frequency) for name in order))
    }


def _objects(
    picture: Picture, order: Sequence[str], ranked: Mapping[str, list[str]], random: Random, per_picture: int
) -> Iterator[tuple[str, bool]]:
    absent = [name for name in order if name not in picture.names]
    for name in list(dict.fromkeys(seen.name for seen in picture.objects))[: per_picture // 2]:
        if not absent:
            return
        other = next((one for one in ranked.get(name, ()) if one in absent), None) or random.choice(absent)
        absent.remove(other)
        yield name, True
        yield other, False


def _takes_an(name: str) -> bool:
    lowered = name.casefold()
    return lowered.startswith(("a", "e", "i", "o", "u", "hour")) and not lowered.startswith(
        ("uni", "use", "ute", "euro", "one", "ukulele")
    )


def _ratios(answers: Sequence[Answer]) -> dict[str, Ratio]:
    """One case per picture: its questions are not independent of each other."""
    if not answers:
        raise HeadscopeError("POPE needs at least one answer.")
    index = {picture_id: i for i, picture_id in enumerate(dict.fromkeys(one.question.picture_id for one in answers))}
    counts = np.zeros((len(index), 2, 2))
    for one in answers:
        counts[index[one.question.picture_id], int(one.question.present), int(one.yes)] += 1
    right_no, false_yes, false_no, right_yes = counts.reshape(-1, 4).T
    asked = counts.sum((1, 2))
    return {
        "accuracy": Ratio(right_yes + right_no, asked),
        "precision": Ratio(right_yes, right_yes + false_yes),
        "recall": Ratio(right_yes, right_yes + false_no),
        "f1": Ratio(2 * right_yes, 2 * right_yes + false_yes + false_no, "f1"),
        "yes_ratio": Ratio(right_yes + false_yes, asked),
    }
