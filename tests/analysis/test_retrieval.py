"""Retrieval scores: hand-computed cases, the traps of the released code, and LOCOS against its formula."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis import retrieval
from analysis.retrieval import answer_steps, copied_tokens, locos, retrieval_score
from probes.heads import Head
from probes.subject import Subject

#          0   1   2   3   4   5   6   7
PROMPT = [10, 11, 12, 13, 12, 14, 15, 16]
NEEDLE = [2, 3, 4, 5]  # tokens 12, 13, 12, 14: three different ones


def looking_at(*positions: int) -> np.ndarray:
    """One layer of one head that looks at these positions, step by step."""
    return np.array(positions).reshape(-1, 1, 1)


def test_a_head_copies_where_it_looks_at_the_very_token_that_is_generated() -> None:
    copies = copied_tokens(looking_at(2, 3, 5), PROMPT, [12, 13, 14], NEEDLE)
    assert copies == {Head(0, 0): [(0, 2), (1, 3), (2, 5)]}
    assert retrieval_score(copies[Head(0, 0)], PROMPT, NEEDLE) == 1.0


def test_looking_at_the_needle_while_another_token_is_generated_is_no_copy() -> None:
    assert copied_tokens(looking_at(2, 3), PROMPT, [13, 12], NEEDLE) == {}


def test_the_same_token_outside_the_needle_is_no_copy() -> None:
    assert copied_tokens(looking_at(0, 6), PROMPT, [10, 15], NEEDLE) == {}


def test_the_last_step_is_read_even_though_its_token_ends_the_answer() -> None:
    assert copied_tokens(looking_at(2, 3), PROMPT, [12], NEEDLE) == {Head(0, 0): [(0, 2)]}


def test_a_token_copied_twice_counts_once_as_the_paper_says_and_twice_as_the_released_code_does() -> None:
    copies = copied_tokens(looking_at(2, 4, 2, 2, 2), PROMPT, [12] * 5, NEEDLE)[Head(0, 0)]
    assert retrieval_score(copies, PROMPT, NEEDLE) == pytest.approx(1 / 3)
    assert retrieval_score(copies, PROMPT, NEEDLE, counting="released") == pytest.approx(5 / 4)


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(PROMPT)), max_size=30))
def test_the_papers_score_never_leaves_0_to_1(steps: list[tuple[int, int]]) -> None:
    copies = copied_tokens(looking_at(*(at for at, _ in steps)), PROMPT, [token for _, token in steps], NEEDLE)
    for found in copies.values():
        assert 0 < retrieval_score(found, PROMPT, NEEDLE) <= 1


# The answer's steps and LOCOS


@pytest.mark.model
def test_the_answers_steps_are_found_by_tokens_or_else_by_characters(smollm: Subject) -> None:
    said = smollm.tokenizer("It was hidden behind the kitchen stove.", add_special_tokens=False)["input_ids"]
    for answer in ("behind the kitchen stove", "BEHIND THE KITCHEN STOVE"):
        steps = answer_steps(smollm, said, answer)
        assert smollm.tokenizer.decode([said[i] for i in steps]).strip().lower() == "behind the kitchen stove"
    assert answer_steps(smollm, said, "under the bed") == []
    assert answer_steps(smollm, [], "under the bed") == []


def test_locos_is_the_difference_of_what_needle_and_other_keys_write(tiny: Callable[..., Subject]) -> None:
    subject = tiny("llama")
    steps, needle_keys, prompt_keys, generated = 3, 4, 11, [5, 6, 7]
    keys = prompt_keys + steps
    p = torch.rand(steps, 2, 4, keys)
    v = torch.randn(steps, 2, 4, keys, 8)
    needle = torch.arange(keys) < needle_keys
    for step in range(steps):
        p[step, :, :, prompt_keys + step :] = 0  # not generated yet
    part = torch.einsum("slhk,slhkd->slhd", p * needle, v)
    whole = torch.einsum("slhk,slhkd->slhd", p, v)
    wanted = [0, 2]
    expected = np.zeros((2, 4))
    for step in wanted:
        unembedding = subject.model.lm_head.weight[generated[step]]
        for layer in range(2):
            projection = subject.model.model.layers[layer].self_attn.o_proj.weight
            for head in range(4):
                phi = [
                    float(p[step, layer, head, j] * unembedding @ projection[:, head * 8 : head * 8 + 8] @ vector)
                    for j, vector in enumerate(v[step, layer, head])
                ]
                others = prompt_keys + step - needle_keys
                contrast = sum(phi[:needle_keys]) - needle_keys / others * sum(phi[needle_keys:])
                expected[layer, head] += contrast / len(wanted)
    seen = torch.tensor([[[needle_keys, prompt_keys + step]] * 2 for step in range(steps)])
    found = locos(subject, part, whole, generated, wanted, seen)
    assert np.abs(found).max() > 0.1
    assert np.allclose(found, expected, atol=1e-4)
    assert (locos(subject, part, whole, generated, [], seen) == 0).all()


# From cases to heads


def case(name: str, scores: dict[str, float], *, passed: bool = True) -> dict[str, Any]:
    return {
        "case": name, "length": 512, "depth": 0.5, "passed": passed, "scores": scores, "scores_released": scores,
        "locos": [[scores.get(f"{layer}-{head}", 0.0) for head in range(3)] for layer in range(2)],
        "needle_mass": [[0.1] * 3] * 2,
    }  # fmt: skip


CASES = [
    case("a", {"0-1": 0.5, "1-2": 1.0}),
    case("b", {"1-2": 0.5}),
    case("c", {"0-0": 1.0}, passed=False),
    case("d", {"0-1": 0.5, "1-2": 0.0}),
]


def test_a_case_that_failed_the_gate_contributes_nothing_and_is_named() -> None:
    table = retrieval.score_table(CASES, 2, 3)
    frame = retrieval.head_frame(table, seed=0)
    summary = retrieval.summarise(CASES, frame, table)
    scores = frame[frame["metric"] == "retrieval_score"].set_index(["layer", "head"])
    assert scores.loc[(0, 0), "value"] == 0
    assert scores.loc[(1, 2), "value"] == pytest.approx(0.5)
    assert scores.loc[(0, 1), "value"] == pytest.approx(1 / 3)
    assert (scores["n"] == 3).all()
    assert summary["failures"] == ["c"]
    assert summary["accuracy"]["value"] == 0.75
    assert summary["heads_at_threshold"] == 2
    assert summary["zero_share"] == pytest.approx(4 / 6)
    frequency = frame[frame["metric"] == "activation_frequency"].set_index(["layer", "head"])["value"]
    assert frequency[1, 2] == pytest.approx(2 / 3)


def test_heads_are_ranked_by_their_score_and_ties_by_mass_on_the_needle_then_place() -> None:
    table = retrieval.score_table(CASES, 2, 3)
    ranked = retrieval.rank_heads(retrieval.head_frame(table, seed=0))
    assert ranked == [Head(1, 2), Head(0, 1), Head(0, 0), Head(0, 2), Head(1, 0), Head(1, 1)]
    table["needle_mass"][:, 1, 0] = 0.2
    ranked = retrieval.rank_heads(retrieval.head_frame(table, seed=0))
    assert ranked == [Head(1, 2), Head(0, 1), Head(1, 0), Head(0, 0), Head(0, 2), Head(1, 1)]


def test_an_interval_holds_its_mean_and_one_case_gives_a_point() -> None:
    frame = retrieval.head_frame(retrieval.score_table(CASES, 2, 3), seed=0)
    assert (frame["low"] <= frame["value"] + 1e-12).all()
    assert (frame["high"] >= frame["value"] - 1e-12).all()
    assert (frame["high"] > frame["low"]).any()


def test_where_no_case_was_answered_there_is_no_score_and_nothing_that_is_not_a_number() -> None:
    failed = [case("a", {"0-1": 1.0}, passed=False)]
    table = retrieval.score_table(failed, 2, 3)
    frame = retrieval.head_frame(table, seed=0)
    summary = retrieval.summarise(failed, frame, table)
    assert isinstance(frame, pd.DataFrame)
    assert frame.empty
    assert summary["top"] == []
    assert summary["share_at_threshold"] is None
    json.dumps(summary, allow_nan=False)


def test_raw_scores_have_the_shape_of_the_authors_files() -> None:
    raw = retrieval.raw_scores(CASES, 2, 3)
    assert list(raw) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert raw["1-2"] == [1.0, 0.5, 0.0]
    assert raw["0-0"] == [0.0, 0.0, 0.0]


def test_stability_is_full_for_equal_halves_and_none_for_heads_that_never_meet() -> None:
    same = np.zeros((4, 2, 3))
    same[:, 0, 0], same[:, 1, 1] = 1.0, 0.5
    found = retrieval.stability(same, k=2)
    assert found is not None
    assert (found["overlap"], found["first"]) == (2, ["L0H0", "L1H1"])
    apart = np.zeros((4, 2, 3))
    apart[0::2, 0, 0], apart[1::2, 1, 1] = 1.0, 1.0
    found = retrieval.stability(apart, k=1)
    assert found is not None
    assert found["overlap"] == 0
    found = retrieval.stability(same, k=5)
    assert found is not None
    assert found["overlap"] == 2  # a head that copies nothing has no rank to share
    assert retrieval.stability(same[:1]) is None


def test_accuracy_by_cell_counts_every_case() -> None:
    assert retrieval.by_cell(CASES, "passed") == [{"length": 512, "depth": 0.5, "accuracy": 0.75, "n": 4}]
