"""CHAIR by hand, and the word for what a change did to captions."""

import math
from collections.abc import Sequence

import pytest
from PIL import Image

from analysis.vision.chair import (
    METRICS,
    CaptionCounts,
    caption_of,
    chair,
    chair_difference,
    chair_interval,
    count,
    verdict,
)
from analysis.vision.objects import Vocabulary
from analysis.vision.pictures import Picture, Seen
from analysis.vision.ratios import Interval
from probes.errors import HeadscopeError

ANIMALS = Vocabulary({"dog": ["puppy"], "cat": (), "cow": ()})


def counted(text: str, *objects: str, tokens: int = 5) -> CaptionCounts:
    picture = Picture(
        "one", tuple(Seen(name, (0, 0, 1, 1)) for name in objects), None, (), lambda: Image.new("RGB", (1, 1))
    )
    return count(caption_of(picture, text, ANIMALS, tokens=tokens))


def test_repeated_mentions_count_in_chair_and_once_in_precision() -> None:
    assert counted("dog, dog, cat", "dog") == CaptionCounts(3, 1, 2, 1, 1, words=3, tokens=5)
    assert chair([counted("dog, dog, cat", "dog")]) == pytest.approx(
        {
            "chair_i": 1 / 3,
            "chair_s": 1,
            "recall": 1,
            "precision": 1 / 2,
            "f1": 2 / 3,
            "tokens": 5,
            "words": 3,
            "objects": 3,
        }
    )


def test_captions_are_pooled_not_averaged() -> None:
    found = chair([counted("a cat", "dog"), counted("dog, puppy, cow", "dog", "cow", "cat", tokens=7)])
    assert found["chair_i"] == 1 / 4
    assert found["chair_s"] == 1 / 2
    assert found["recall"] == 2 / 4
    assert found["precision"] == 2 / 3
    assert found["f1"] == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert (found["tokens"], found["words"], found["objects"]) == (6, 2.5, 2)


def test_two_objects_of_a_class_are_one_object_to_find() -> None:
    assert counted("dogs", "dog", "dog").true == 1


def test_a_model_that_names_nothing_has_no_hallucination_and_no_recall() -> None:
    found = chair([counted("", "dog"), counted("nice", "cat")])
    assert found["chair_i"] == found["chair_s"] == found["recall"] == found["precision"] == found["f1"] == 0
    limits = chair_interval([counted("", "dog"), counted("nice", "cat")], seed=0)
    assert limits["chair_i"] == (0, 0, 1)
    assert all(math.isfinite(number) for interval in limits.values() for number in interval)


def test_a_denied_object_is_mentioned_all_the_same() -> None:
    assert counted("There is no cat", "dog").hallucinated == 1


def test_intervals_hold_their_values_and_come_again_with_the_seed() -> None:
    captions = [counted("dog, cat", "dog"), counted("a cow", "cow"), counted("cat", "dog"), counted("a dog", "dog")]
    found = chair_interval(captions, seed=1)
    assert tuple(found) == METRICS
    assert {name: interval.value for name, interval in found.items()} == chair(captions)
    assert all(interval.low <= interval.value <= interval.high for interval in found.values())
    assert found == chair_interval(captions, seed=1)


def test_a_picture_with_what_no_caption_could_mention_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="lacks 'unicorn'"):
        counted("a dog", "unicorn")


def test_other_pictures_and_no_captions_are_refused() -> None:
    with pytest.raises(HeadscopeError, match="at least one caption"):
        chair([])
    with pytest.raises(HeadscopeError, match="same pictures"):
        chair_difference([counted("dog", "dog")], [counted("dog", "dog", "cat")], seed=0)


def judged(treated: Sequence[CaptionCounts], untreated: Sequence[CaptionCounts]) -> tuple[str, bool]:
    found = verdict(chair_difference(treated, untreated, seed=0))
    return found.word, found.length_changed


def test_the_verdict_names_what_was_paid() -> None:
    """40 pictures of a dog and a cow; captions differ from picture to picture, so that resamples do."""

    def said(*texts: str, tokens: int = 10) -> list[CaptionCounts]:
        return [counted(texts[at % len(texts)], "dog", "cow", tokens=tokens) for at in range(40)]

    usual = said("dog and cat", "dog", "dog, cow, cat")
    assert judged(usual, usual) == ("no effect", False)
    assert judged(said("dog", "dog", "dog, cow"), usual) == ("helps", False)
    assert judged(said("dog, cow, cat", "dog, cow", "dog, cow, cat"), usual) == ("helps", False)
    assert judged(said("dog", "", "dog"), usual) == ("trades recall", False)
    assert judged(said("dog, cow, cat", "dog, cow, cat, cat, cats", "dog, cow, cat"), usual)[0] == "trades precision"
    assert judged(said("cat", "dog", "cat"), usual) == ("hurts", False)


@pytest.mark.parametrize(("tokens", "changed"), [(13, False), (14, True), (7, False), (6, True)])
def test_captions_of_another_length_are_flagged(tokens: int, changed: bool) -> None:
    same = [counted("dog", "dog", tokens=10)] * 3
    assert judged([counted("dog", "dog", tokens=tokens)] * 3, same) == ("no effect", changed)


@pytest.mark.parametrize(
    ("chair_i", "recall", "f1", "word"),
    [
        (-1, 0, -1, "trades recall"),
        (0, 1, -1, "trades precision"),
        (0, 0, 1, "no effect"),
        (0, 0, -1, "hurts"),
        (1, -1, 0, "hurts"),
        (-1, 1, 1, "helps"),
    ],
)
def test_a_better_number_never_hides_a_worse_one(chair_i: int, recall: int, f1: int, word: str) -> None:
    signs = {"chair_i": chair_i, "recall": recall, "f1": f1, "length_change": 0}
    difference = {name: Interval(sign / 10, sign / 10 - 0.05, sign / 10 + 0.05) for name, sign in signs.items()}
    assert verdict(difference).word == word
