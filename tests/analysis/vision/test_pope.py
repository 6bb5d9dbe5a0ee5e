"""POPE asks as the paper asks, reads answers as its code reads them, and counts by hand."""

from collections import Counter
from collections.abc import Sequence

import pytest
from PIL import Image

from analysis.uncertainty import wilson
from analysis.vision.objects import Vocabulary
from analysis.vision.pictures import Picture, Seen
from analysis.vision.pope import SPLITS, Answer, Question, Split, parse, pope, pope_difference, questions
from probes.errors import HeadscopeError

THINGS = Vocabulary(dict.fromkeys(("apple", "dog", "cat", "cow", "kite", "umbrella", "unicycle", "zebra"), ()))


def picture(id: str, *objects: str) -> Picture:
    seen = tuple(Seen(name, (0, 0, 1, 1)) for name in objects)
    return Picture(id, seen, None, (), lambda: Image.new("RGB", (1, 1)))


PICTURES = [
    picture("a", "dog", "dog", "cat", "cow", "kite"),
    picture("b", "dog", "umbrella"),
    picture("c", "kite", "apple"),
    picture("d", "dog", "umbrella", "apple"),
    picture("e"),
]


def asked(split: Split, pictures: Sequence[Picture] = PICTURES, **more: object) -> dict[str, list[tuple[str, bool]]]:
    found: dict[str, list[tuple[str, bool]]] = {}
    for question in questions(pictures, THINGS, split, seed=0, **more):  # type: ignore[arg-type]
        found.setdefault(question.picture_id, []).append((question.object, question.present))
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_asks_for_the_first_three_and_for_as_many_absent(split: Split) -> None:
    found = asked(split)
    assert [name for name, present in found["a"] if present] == ["dog", "cat", "cow"]
    assert "e" not in found
    for one in PICTURES[:4]:
        absent = [name for name, present in found[one.id] if not present]
        assert len(absent) == min(3, len(one.names))
        assert len(set(absent)) == len(absent)
        assert one.names.isdisjoint(absent)


def test_popular_asks_for_the_most_frequent_absent_object() -> None:
    """dog 3, kite 2, umbrella 2, apple 2, cat 1, cow 1; ties by the vocabulary's order."""
    assert asked("popular")["b"] == [("dog", True), ("apple", False), ("umbrella", True), ("kite", False)]
    assert asked("popular")["c"][1] == ("dog", False)


def test_adversarial_asks_for_what_accompanies_the_object_just_asked_for() -> None:
    """With umbrella: dog twice, apple once. With dog: umbrella twice, others once. With kite: four once each."""
    found = asked("adversarial")
    assert found["b"] == [("dog", True), ("apple", False), ("umbrella", True), (found["b"][3][0], False)]
    assert found["c"] == [("kite", True), ("dog", False), ("apple", True), ("umbrella", False)]


def test_adversarial_falls_back_to_a_random_object_where_no_company_is_left() -> None:
    found = asked("adversarial", [picture("one", "zebra")])
    assert found["one"][0] == ("zebra", True)
    assert found["one"][1][0] in set(THINGS.names) - {"zebra"}


def test_frequencies_come_from_the_reference_pictures() -> None:
    reference = [picture("r", "zebra", "dog"), picture("s", "zebra")]
    assert asked("popular", [PICTURES[1]], reference=reference)["b"][1] == ("zebra", False)


def test_random_questions_depend_on_the_seed_and_not_on_the_other_pictures() -> None:
    alone = asked("random", [PICTURES[1]])["b"]
    assert alone == asked("random")["b"]
    drawn = Counter(
        questions([PICTURES[1]], THINGS, "random", seed=seed, per_picture=2)[1].object for seed in range(60)
    )
    assert set(drawn) == set(THINGS.names) - {"dog", "umbrella"}


def test_a_picture_that_lacks_little_gets_balanced_questions() -> None:
    full = picture("full", *[name for name in THINGS.names if name != "zebra"])
    assert asked("popular", [full])["full"] == [("apple", True), ("zebra", False)]


def test_the_wording_is_the_originals_unless_the_article_is_asked_for() -> None:
    texts = [one.text for one in questions([picture("one", "umbrella", "unicycle")], THINGS, "popular", seed=0)]
    assert texts[0] == "Is there a umbrella in the image?"
    fixed = questions([picture("one", "umbrella", "unicycle")], THINGS, "popular", seed=0, article=True)
    assert [one.text for one in fixed if one.present] == [
        "Is there an umbrella in the image?",
        "Is there a unicycle in the image?",
    ]


@pytest.mark.parametrize(
    ("pictures", "split", "per_picture", "match"),
    [
        (PICTURES, "hard", 6, "no split 'hard'"),
        (PICTURES, "random", 3, "not 3"),
        (PICTURES[4:], "random", 6, "an object in it"),
        ([picture("x", "unicorn")], "random", 6, "lacks 'unicorn'"),
    ],
)
def test_what_can_not_be_asked_is_refused(pictures: list[Picture], split: Split, per_picture: int, match: str) -> None:
    with pytest.raises(HeadscopeError, match=match):
        questions(pictures, THINGS, split, seed=0, per_picture=per_picture)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("No, there is not.", False),
        ("There is no dog", False),
        ("There is a dog, not a cat.", False),
        ("Yes. But not sure", True),
        (" no.", False),
        ("No\nThe image shows a cat", False),
        ("NO", True),
        ("nope", True),
        ("None", True),
        ("", True),
    ],
)
def test_answers_are_read_as_the_original_reads_them(answer: str, yes: bool) -> None:
    assert parse(answer) is yes


def answers(*given: tuple[str, bool, bool]) -> list[Answer]:
    return [Answer(Question(id, "dog", present, "random", "?"), yes) for id, present, yes in given]


def test_scores_by_hand() -> None:
    """2 hits, 1 miss, 2 false alarms, 1 rejection."""
    found = pope(
        answers(
            ("a", True, True),
            ("a", False, True),
            ("b", True, True),
            ("b", False, True),
            ("c", True, False),
            ("c", False, False),
        )
    )
    assert found.accuracy == pytest.approx((1 / 2, *wilson(1 / 2, 6)))
    assert found.precision == pytest.approx((1 / 2, *wilson(1 / 2, 4)))
    assert found.recall == pytest.approx((2 / 3, *wilson(2 / 3, 3)))
    assert found.f1.value == pytest.approx(4 / 7)
    assert found.yes_ratio.value == pytest.approx(4 / 6)
    assert found.n == 6


def test_a_model_that_never_says_yes_has_precision_zero_and_all_uncertain() -> None:
    found = pope(answers(("a", True, False), ("a", False, False)))
    assert found.precision == (0, 0, 1)
    assert found.f1.value == 0


def test_a_difference_is_over_pictures_and_the_same_questions() -> None:
    before = answers(*[(str(i), present, True) for i in range(30) for present in (True, False)])
    after = answers(*[(str(i), present, present or i % 3 == 0) for i in range(30) for present in (True, False)])
    found = pope_difference(after, before, seed=0)
    assert found["accuracy"].value == pytest.approx(1 / 3)
    assert found["accuracy"].low > 0
    assert found["recall"].low < 0 < found["recall"].high
    with pytest.raises(HeadscopeError, match="same questions"):
        pope_difference(after[:-1], before, seed=0)
    with pytest.raises(HeadscopeError, match="at least one answer"):
        pope([])
