"""Forcing another token: which positions, which tokens, what survives, and the test over traces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from analysis.rhythm.continuations import content_words, similarity
from analysis.rhythm.influential import choose
from analysis.rhythm.perturbation import PUBLISHED, likely_others, perturb, perturbation_test
from analysis.rhythm.traces import Tokens
from probes.errors import HeadscopeError
from probes.generation import generate, greedy, prefill
from probes.subject import Subject, load

NAN = float("nan")


@pytest.fixture(scope="module")
def reader(tiny_folder: Callable[..., Path]) -> Subject:
    """A small random Llama with the tokenizer of SmolLM2."""
    return load(str(tiny_folder()), device="cpu", dtype="float32")


def some_trace(reader: Subject, prompt: int, response: int, *, own: bool = False) -> Tokens:
    """Random tokens, or for the response those that the model itself finds likeliest."""
    ids = torch.randint(100, 4000, (prompt + response,))
    if own:
        ids = torch.cat([ids[:prompt], torch.tensor(generate(reader, [ids[:prompt]], new_tokens=response)[0])])
    texts = tuple(reader.tokenizer.decode([token]) for token in ids[prompt:].tolist())
    return Tokens(ids, range(prompt, len(ids)), texts)


# What survives


def test_content_words_are_words_and_numbers_in_lower_case_without_the_small_ones() -> None:
    found = content_words("So the Total is 3.50 dollars, and Anna's bag took 2 of them at 9:30.")
    assert found == {"total", "3.50", "dollars", "anna's", "bag", "took", "2", "9:30"}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Anna has 5 apples", "Anna buys 5 pears", 2 / 5),
        ("five apples", "the five APPLES, apples", 1.0),
        ("five apples", "six pears", 0.0),
        ("five apples", "and the", 0.0),
        ("it is", "", 1.0),
    ],
)
def test_similarity_is_the_share_of_content_words_in_common(first: str, second: str, expected: float) -> None:
    assert similarity(first, second) == pytest.approx(expected)
    assert similarity(second, first) == pytest.approx(expected)


# Positions


def test_the_strongest_and_weakest_positions_are_chosen_before_the_margin_and_never_a_missing_one() -> None:
    fai = np.array([0.3, NAN, 0.9, 0.1, 0.5, 0.2, 0.99, 0.01])
    found = choose(fai, count=2, margin=2)
    assert found is not None
    assert found.high == (2, 4)
    assert found.low == (3, 5)


def test_no_position_is_both_of_high_and_of_low_influence() -> None:
    found = choose(np.ones(6), count=2, margin=2)
    assert found is not None
    assert (found.high, found.low) == ((0, 1), (2, 3))


def test_a_response_with_too_few_open_positions_has_none() -> None:
    assert choose(np.arange(7.0), count=2, margin=4) is None
    assert choose(np.arange(3.0), count=1, margin=16) is None
    assert choose(np.full(40, NAN), count=1, margin=16) is None


def test_matched_positions_are_paired_within_a_tenth_of_the_response() -> None:
    fai = np.zeros(40)  # tenths of four tokens
    fai[[0, 1, 2, 3]] = 9, 8, 1, 2  # two of the highest, and each needs a lower one beside it
    fai[[8, 9, 10, 11]] = 5, 0.5, 0.7, 0.6
    fai[4:8] = 7  # equal throughout: nothing lower to pair with
    found = choose(fai, count=3, margin=16, matched=True)
    assert found is not None
    assert found.high == (0, 1, 8)
    assert found.low == (2, 3, 9)


def test_a_series_without_any_pair_has_no_matched_positions() -> None:
    assert choose(np.ones(40), count=2, margin=16, matched=True) is None


# Forcing


def test_the_tokens_forced_are_the_likeliest_others_and_no_special_ones(reader: Subject) -> None:
    ids = torch.randint(100, 4000, (12,))
    logits = reader.model(input_ids=ids[None]).logits[0]
    ids[7] = int(logits[6].argmax())  # a position that holds the likeliest token itself
    special = {*reader.stop_tokens, *reader.tokenizer.all_special_ids}
    found = likely_others(reader, ids, [3, 7], 4)
    for position, others in found.items():
        ranked = logits[position - 1].argsort(descending=True).tolist()
        assert others == [token for token in ranked if token != ids[position] and token not in special][:4]


def test_what_survives_is_that_of_a_plain_greedy_continuation(reader: Subject) -> None:
    tokens = some_trace(reader, 6, 30)
    fai = np.random.default_rng(0).random(30)
    together = perturb(reader, tokens, fai, positions=2, margin=5, alternatives=2, new_tokens=8)
    apart = perturb(reader, tokens, fai, positions=2, margin=5, alternatives=2, new_tokens=8, rows=1)
    assert together is not None
    assert together == apart  # whatever continuations are decoded beside it
    for place in together["places"]:
        at = 6 + place["position"]
        others = likely_others(reader, tokens.ids, [at], 2)[at]
        for token, survival in zip(others, place["survivals"], strict=True):
            said = greedy(reader, prefill(reader, torch.cat([tokens.ids[:at], torch.tensor([token])])), token, 8)
            own = tokens.ids[at + 1 : at + 9]
            texts = [reader.tokenizer.decode(each, skip_special_tokens=True) for each in (own, said[: len(own)])]
            assert survival == pytest.approx(similarity(*texts))
        assert place["survival"] == pytest.approx(np.mean(place["survivals"]))


def test_halves_are_the_means_of_their_positions(reader: Subject) -> None:
    tokens = some_trace(reader, 6, 30)
    fai = np.random.default_rng(1).random(30)
    found = perturb(reader, tokens, fai, positions=2, margin=5, alternatives=1, new_tokens=4)
    assert found is not None
    survival = {place["position"]: place["survival"] for place in found["places"]}
    for choice, matched in (("plain", False), ("matched", True)):
        chosen = choose(fai, count=2, margin=5, matched=matched)
        assert chosen is not None
        assert found[choice]["survival"]["high"] == pytest.approx(np.mean([survival[i] for i in chosen.high]))
        assert found[choice]["survival"]["low"] == pytest.approx(np.mean([survival[i] for i in chosen.low]))


def test_a_greedy_trace_survives_whole_where_its_own_token_stays(reader: Subject) -> None:
    tokens = some_trace(reader, 6, 30, own=True)
    fai = np.arange(len(tokens.response), dtype=float)
    found = perturb(reader, tokens, fai, positions=2, margin=4, alternatives=1, new_tokens=12)
    assert found is not None
    assert found["plain"]["unforced"] == {"high": 1.0, "low": 1.0}


def test_a_trace_that_fills_the_models_window_is_continued_as_far_as_it_goes(reader: Subject) -> None:
    context = reader.anatomy.context
    tokens = some_trace(reader, context - 20, 20, own=True)
    found = perturb(reader, tokens, np.arange(20.0), positions=1, margin=4, alternatives=1, new_tokens=64)
    assert found is not None
    assert [place["position"] for place in found["places"]] == [0, 14, 15]
    assert [place["unforced"] for place in found["places"]] == [1.0] * 3


def test_a_short_response_gives_no_record(reader: Subject) -> None:
    assert perturb(reader, some_trace(reader, 4, 10), np.arange(10.0)) is None


def test_a_series_of_another_length_and_settings_out_of_range_are_refused(reader: Subject) -> None:
    tokens = some_trace(reader, 4, 10)
    with pytest.raises(HeadscopeError, match="9 numbers do not match a response of 10 tokens"):
        perturb(reader, tokens, np.ones(9))
    with pytest.raises(HeadscopeError, match="at least one"):
        perturb(reader, tokens, np.ones(10), alternatives=0)


# Over traces


def record(high: float, low: float, *, matched: bool = True) -> dict[str, Any]:
    halves = {"survival": {"high": high, "low": low}, "unforced": {"high": 1.0, "low": 1.0}}
    return {"plain": halves, "matched": halves if matched else None}


def test_the_test_over_traces_is_paired() -> None:
    gaps = [0.1, 0.2, 0.05, -0.01, 0.15, 0.12, 0.0, 0.3]
    records = [record(0.5 - gap, 0.5, matched=i < 5) for i, gap in enumerate(gaps)]
    found = perturbation_test([*records, None], seed=0)
    plain = found["plain"]["survival"]
    assert plain["high"]["value"] == pytest.approx(0.5 - np.mean(gaps))
    assert plain["low"]["value"] == 0.5
    assert plain["difference"]["value"] == pytest.approx(-np.mean(gaps))
    assert plain["difference"]["low"] < -np.mean(gaps) < plain["difference"]["high"] < 0
    assert plain["lower"]["value"] == 6 / 8
    assert plain["lower"]["low"] < 6 / 8 < plain["lower"]["high"]
    assert plain["ties"] == 1
    assert plain["p"] == pytest.approx(wilcoxon([-gap for gap in gaps]).pvalue)
    assert found["matched"]["survival"]["difference"]["n"] == 5
    assert found["published"] == PUBLISHED


def test_traces_without_any_difference_prove_nothing() -> None:
    found = perturbation_test([record(0.5, 0.5)] * 4, seed=0)["plain"]["survival"]
    assert (found["p"], found["ties"], found["lower"]["value"]) == (1.0, 4, 0.0)


def test_a_choice_that_no_trace_has_is_left_out() -> None:
    assert perturbation_test([None], seed=0)["plain"] is None
    assert perturbation_test([record(0.4, 0.5, matched=False)], seed=0)["matched"] is None
