"""Objects are found by their names, synonyms and plurals, where they stand, and the longest phrase wins."""

from collections.abc import Sequence

import pytest
from PIL import Image

from analysis.vision.objects import Mention, Vocabulary, named, vocabulary_of
from analysis.vision.pictures import Picture, Seen
from probes.errors import HeadscopeError

COCO = Vocabulary.coco()


def names_in(text: str, vocabulary: Vocabulary = COCO) -> list[str]:
    return [mention.name for mention in vocabulary.mentions(text)]


def picture(*names: str, likely: Sequence[str] = ()) -> Picture:
    objects = tuple(Seen(name, (0, 0, 1, 1)) for name in names)
    return Picture("one", objects, None, tuple(likely), lambda: Image.new("RGB", (1, 1)))


def test_coco_has_its_80_classes() -> None:
    assert len(COCO.names) == 80
    assert all(names_in(f"a {name}.") == [name] for name in COCO.names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog, a Dog and DOGS", ["dog", "dog", "dog"]),
        ("a hot dog", ["hot dog"]),
        ("two hot-dogs on a  hot\ndog stand", ["hot dog", "hot dog"]),
        ("It is hot. Dog and owner rest.", ["dog"]),
        ("a teddy bear and a bear", ["teddy bear", "bear"]),
        ("the toilet seat is up", ["toilet"]),
        ("a toilet, and its seats", ["toilet"]),
        ("a seat", ["chair"]),
        ("a baby elephant and a baby", ["elephant", "person"]),
        ("a man in a bow tie", ["person", "tie"]),
        ("a train on the train tracks", ["train"]),
        ("the home plate", []),
        ("mice, knives, geese, sheep, people, women", ["mouse", "knife", "bird", "sheep", "person", "person"]),
        ("buses, benches, sandwiches, puppies, firemen", ["bus", "bench", "sandwich", "dog", "person"]),
        ("two glasses of wine, a catcher's mitt", ["wine glass", "baseball glove"]),
        ("a category of cargo in a doghouse", []),
        ("There is no dog.", ["dog"]),
        ("", []),
    ],
)
def test_phrases_are_counted_as_the_object_they_mean(text: str, expected: list[str]) -> None:
    assert names_in(text) == expected


def test_a_mention_says_which_characters_name_it() -> None:
    text = "İn thé picture: two COMPUTER MICE, one mouse"
    animals = Vocabulary({"mouse": (), "computer mouse": ()})
    found = animals.mentions(text)
    assert [(mention.name, text[mention.start : mention.stop]) for mention in found] == [
        ("computer mouse", "COMPUTER MICE"),
        ("mouse", "mouse"),
    ]
    assert animals.mentions("a mouse") == [Mention("mouse", 2, 7)]


def test_a_name_that_is_written_wins_over_a_plural_of_another() -> None:
    vocabulary = Vocabulary({"glass": (), "glasses": ()})
    assert names_in("glass, glasses", vocabulary) == ["glass", "glasses"]


def test_a_word_for_two_objects_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="'Seat' stands for both 'chair' and 'couch'"):
        Vocabulary({"chair": ["seat"], "couch": ["Seat"]})


@pytest.mark.parametrize("names", [{}, {"": ()}, {"dog": ["--"]}])
def test_a_vocabulary_without_words_is_refused(names: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(HeadscopeError):
        Vocabulary(names)


def test_a_vocabulary_of_pictures_has_what_they_show_and_what_is_expected() -> None:
    vocabulary = vocabulary_of([picture("Dog", "windmill"), picture("windmill", likely=["cheese"])])
    assert list(vocabulary.names) == ["Dog", "cheese", "windmill"]
    assert names_in("a puppy, windmills, cheese, a hot dog, a cat", vocabulary) == ["Dog", "windmill", "cheese"]


def test_a_synonym_that_is_a_name_of_its_own_stays_with_its_own() -> None:
    vocabulary = named(["mouse", "computer mouse", "taxi", "car"])
    assert names_in("a computer mouse, a mouse, a taxi, a van", vocabulary) == [
        "computer mouse",
        "mouse",
        "taxi",
        "car",
    ]


def test_an_object_that_no_text_could_mention_is_refused() -> None:
    COCO.check(["dog", "cat"])
    with pytest.raises(HeadscopeError, match="lacks 'unicorn'"):
        COCO.check(["dog", "unicorn"])
