"""AMBER by hand, in the paper's form and the code's, without the code's slips."""

import math

import pytest
from PIL import Image

from analysis.uncertainty import wilson
from analysis.vision.amber import Reply, Response, amber, amber_score, discriminative, read_answer, respond
from analysis.vision.objects import Vocabulary
from analysis.vision.pictures import Picture, Seen
from probes.errors import HeadscopeError

THINGS = Vocabulary({"dog": ["puppy"], "cat": (), "frisbee": (), "tree": ()})


def picture(objects: tuple[str, ...], likely: tuple[str, ...]) -> Picture:
    seen = tuple(Seen(name, (0, 0, 1, 1)) for name in objects)
    return Picture("one", seen, None, likely, lambda: Image.new("RGB", (1, 1)))


PARK = respond(picture(("dog", "tree"), ("frisbee",)), "A puppy, a dog, a cat, and a cat with a frisbee", THINGS)
QUIET = respond(picture(("tree",), ("dog", "cat")), "A tree", THINGS)


def values(responses: list[Response], form: str) -> dict[str, float]:
    return {name: found.value for name, found in amber(responses, form=form, seed=0).items()}  # type: ignore[arg-type]


def test_the_papers_form_counts_objects() -> None:
    """dog, cat, frisbee and tree are said; cat and frisbee are not there; frisbee is expected; 3 objects are there."""
    assert values([PARK, QUIET], "paper") == pytest.approx({"chair": 2 / 4, "cover": 2 / 3, "hal": 1 / 2, "cog": 1 / 4})


def test_the_codes_form_counts_nouns_and_divides_cog_by_the_targets() -> None:
    assert values([PARK, QUIET], "code") == pytest.approx({"chair": 3 / 6, "cover": 2 / 3, "hal": 1 / 2, "cog": 1 / 3})


def test_without_targets_nothing_is_expected() -> None:
    """The released code takes the whole list for the targets there, synonyms of objects included."""
    plain = respond(picture(("dog",), ()), "a dog and a cat", THINGS)
    assert values([plain], "code")["cog"] == 0
    assert values([plain], "paper")["cog"] == 0


def test_a_response_without_objects_is_counted_without_nan() -> None:
    found = amber([respond(picture(("dog",), ()), "Nice.", THINGS)], seed=0)
    assert found["chair"] == (0, 0, 1)
    assert found["cover"].value == 0
    assert all(math.isfinite(number) for interval in found.values() for number in interval)


def test_a_target_that_is_in_the_picture_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="shows 'dog'"):
        respond(picture(("dog",), ("dog",)), "a dog", THINGS)


def test_other_forms_and_no_responses_are_refused() -> None:
    with pytest.raises(HeadscopeError, match="'both'"):
        amber([PARK], form="both", seed=0)  # type: ignore[arg-type]
    with pytest.raises(HeadscopeError, match="at least one response"):
        amber([], seed=0)
    with pytest.raises(HeadscopeError, match="at least one reply"):
        discriminative([])


@pytest.mark.parametrize(
    ("text", "said"), [("Yes", True), ("No", False), ("no", None), ("No.", None), ("Yes, it is", None), ("", None)]
)
def test_answers_must_be_exactly_yes_or_no(text: str, said: bool | None) -> None:
    assert read_answer(text) is said


def test_no_is_the_positive_class() -> None:
    """4 absent, of which 2 denied; 3 denials in all; an answer of another form is wrong, and no denial."""
    replies = [
        Reply(False, "No"),
        Reply(False, "No"),
        Reply(False, "Yes"),
        Reply(False, "No."),
        Reply(True, "No"),
        Reply(True, "Yes"),
        Reply(True, "yes"),
    ]
    found = discriminative(replies)
    assert found["accuracy"].value == pytest.approx(3 / 7)
    assert found["precision"] == pytest.approx((2 / 3, *wilson(2 / 3, 3)))
    assert found["recall"] == pytest.approx((2 / 4, *wilson(2 / 4, 4)))
    assert found["f1"].value == pytest.approx(4 / 7)


def test_the_score_rewards_a_low_chair_and_a_high_f1() -> None:
    assert amber_score(0, 1) == 1
    assert amber_score(0.1, 0.7) == pytest.approx(0.8)
