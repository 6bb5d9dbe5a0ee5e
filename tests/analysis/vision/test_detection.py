"""Invented objects told from real ones, and the words' tokens found."""

from typing import Any

import numpy as np
import pytest
from xarray import DataArray

from analysis.vision.detection import auroc, auroc_interval, detect, first_rows, split
from analysis.vision.objects import Mention
from probes.errors import HeadscopeError
from probes.subject import Subject


class Bytes:
    """A tokenizer of one byte a token, as a byte-level one is where it knows no merge. 0 is a special token."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool, **_: Any) -> str:
        return bytes(i for i in ids if i or not skip_special_tokens).decode(errors="replace")


@pytest.fixture
def bytewise(tiny: Any) -> Subject:
    return Subject(name="bytes", model=tiny("llama").model, tokenizer=Bytes(), anatomy=tiny("llama").anatomy)


def mention(text: str, name: str) -> Mention:
    return Mention(name, text.index(name), text.index(name) + len(name))


def test_a_word_behind_characters_of_many_bytes_is_found_at_its_first_token(bytewise: Subject) -> None:
    text = "é🙂 a dog"
    ids = [*text.encode(), 0]
    assert first_rows(bytewise, ids, [mention(text, "dog")]) == [text.encode().index(b"dog")]


def test_a_character_of_many_tokens_belongs_to_the_one_that_begins_it(bytewise: Subject) -> None:
    assert first_rows(bytewise, [*"a🙂🐶".encode()], [Mention("dog", 2, 3)]) == [5]


def test_mentions_of_a_stripped_caption_are_shifted(bytewise: Subject) -> None:
    assert first_rows(bytewise, [*b"  a dog"], [mention("a dog", "dog")], text="a dog") == [4]
    with pytest.raises(HeadscopeError, match="not what these tokens say"):
        first_rows(bytewise, [*b"a cat"], [mention("a dog", "dog")], text="a dog")
    with pytest.raises(HeadscopeError, match="ends before character"):
        first_rows(bytewise, [*b"a"], [mention("a dog", "dog")])


def test_words_of_a_real_tokenizer_are_found_at_the_token_that_holds_their_first_letter(smollm: Subject) -> None:
    text = "A giraffe, two avocados and a skateboard 🛹."
    ids = smollm.tokenizer.encode(text, add_special_tokens=False)
    rows = first_rows(smollm, ids, [mention(text, name) for name in ("giraffe", "avocados", "skateboard", "🛹")])
    offsets = smollm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for row, name in zip(rows, ("giraffe", "avocados", "skateboard", "🛹"), strict=True):
        start, stop = offsets[row]
        assert start <= text.index(name) < stop


def test_the_area_is_the_chance_that_an_invented_word_scores_higher() -> None:
    # Pairs (invented, real): 3 over 1, 3 over 2, 2 over 1 and a tie of 2 and 2.
    assert float(auroc([3, 2, 1, 2], [True, True, False, False])) == pytest.approx(3.5 / 4)
    two = auroc(np.array([[3.0, 0], [2, 0], [1, 1], [2, 1]]), [True, True, False, False])
    assert two.tolist() == pytest.approx([3.5 / 4, 0])
    with pytest.raises(HeadscopeError, match="one kind only"):
        auroc([1.0, 2.0], [True, True])


def test_the_interval_resamples_captions_and_not_words() -> None:
    generator = np.random.default_rng(0)
    invented, scores = np.tile([True, False], 30), generator.normal(size=60)
    scores += invented * 0.7
    alone = auroc_interval(scores, invented, np.arange(60) // 2, seed=0)
    # The same words said ten times over in their captions are no new evidence.
    again = auroc_interval(np.tile(scores, 10), np.tile(invented, 10), np.tile(np.arange(60) // 2, 10), seed=0)
    assert again["value"] == pytest.approx(alone["value"])
    assert again["high"] - again["low"] == pytest.approx(alone["high"] - alone["low"])
    assert (again["n"], again["invented"], again["captions"]) == (600, 300, 30)
    assert alone["low"] < alone["value"] < alone["high"]


def test_an_interval_of_one_caption_claims_nothing() -> None:
    found = auroc_interval([1.0, 2.0], [True, False], ["a", "b"], seed=0)
    assert (found["low"], found["high"]) == (0, 1)


def features(effect: float) -> tuple[DataArray, np.ndarray, np.ndarray]:
    """Words of 60 captions; the heads L1H2 and L0H1 give less to invented ones, the other way round L1H0."""
    generator = np.random.default_rng(1)
    captions = np.repeat(np.arange(60), 4)
    invented = generator.random(240) < 0.3
    values = generator.normal(size=(240, 2, 3))
    values[invented, 1, 2] -= 2 * effect
    values[invented, 0, 1] -= effect
    values[invented, 1, 0] += 3 * effect
    return DataArray(values, dims=("word", "layer", "head")), invented, captions


def test_heads_that_tell_are_chosen_and_judged_on_captions_they_have_not_seen() -> None:
    values, invented, captions = features(1.0)
    found = detect(values, invented, captions, seed=0, top=2)
    assert found["heads"] == [(1, 2), (0, 1)]
    assert found["low"] > 0.8
    assert found["n"] == 120
    assert detect(values, invented, captions, seed=0, top=1, higher=True)["heads"] == [(1, 0)]
    assert detect(values, invented, captions, seed=0, fitted=True, top=2)["value"] > found["value"]


def test_heads_chosen_from_noise_are_judged_at_chance() -> None:
    generator = np.random.default_rng(2)
    _, invented, captions = features(0)
    chosen = split(captions, seed=0)
    noise = [DataArray(generator.normal(size=(240, 10, 9)), dims=("word", "layer", "head")) for _ in range(10)]
    judged = [detect(each, invented, captions, seed=0, top=1)["value"] for each in noise]
    assert np.mean(judged) == pytest.approx(0.5, abs=0.05)
    # Judged where they were chosen, the best of ninety would look good.
    assert np.mean([auroc(-each.values[chosen], invented[chosen]).max() for each in noise]) > 0.57


def test_no_caption_is_in_both_halves() -> None:
    captions = np.repeat(["a", "b", "c", "d"], 3)
    half = split(captions, seed=0)
    assert all(len(set(half[captions == name])) == 1 for name in "abcd")
    assert half.sum() == 6


def test_a_half_without_inventions_is_refused_in_a_sentence() -> None:
    values, _, captions = features(0)
    only_one = captions == 0
    with pytest.raises(HeadscopeError, match="half of the captions lacks"):
        detect(values, only_one, captions, seed=0, top=1)
