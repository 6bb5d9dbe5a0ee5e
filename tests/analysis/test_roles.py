"""Roles from evidence that was made by hand: chosen on even cases, judged on odd ones."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.role_cases import evidence_of, scores_of
from analysis.role_run import with_thresholds
from analysis.roles import ROLES, Role, carried, halves, needle_absent, overlap, summarise, unexplained
from probes.errors import HeadscopeError


def cases(*values: list[float]) -> NDArray[np.float64]:
    """(case, 1 layer, head) from a list of the heads' values per case."""
    return np.array(values, dtype=float)[:, None, :]


def masks(**held: list[bool]) -> dict[str, NDArray[np.bool_]]:
    return {name: np.array([values]) for name, values in held.items()}


def test_a_threshold_itself_is_enough_and_a_head_that_does_nothing_stays_below_it() -> None:
    at, low = Role("a", "x", 0.5, "", ""), Role("b", "x", 0.5, "", "", above=False)
    evidence = {"x": cases([0.25, 0.4, 1.0], [0.75, 0.5, 1.0])}
    assert carried(evidence, [at, low])["a"].tolist() == [[True, False, True]]
    assert carried(evidence, [at, low])["b"].tolist() == [[False, True, False]]


def test_a_head_that_is_strong_only_in_the_cases_that_chose_it_is_not_confirmed() -> None:
    induction = cases([0.9, 0.9, 0.0], [0.9, 0.1, 0.9], [0.7, 0.9, 0.1], [0.5, 0.1, 0.9])
    summary = summarise({"induction": induction}, seed=0)
    role = summary["roles"]["induction"]
    assert role["chosen"] == 2
    assert role["confirmed_heads"] == ["L0H0"]
    assert (role["confirmed"]["value"], role["confirmed"]["n"]) == (0.5, 2)
    assert [head["roles"] for head in summary["heads"]] == [["induction"], ["induction"], []]
    assert [head["confirmed"] for head in summary["heads"]] == [["induction"], [], []]
    first = summary["heads"][0]["evidence"]["induction"]
    assert (first["chosen"], first["judged"]) == pytest.approx((0.8, 0.7))
    assert first["low"] == pytest.approx(0.5)  # of two odd cases, 0.9 and 0.5
    assert first["high"] == pytest.approx(0.9)
    assert summary["unexplained"]["heads"] == ["L0H1", "L0H2"]


def test_confirmed_heads_stand_strongest_first_and_for_doing_nothing_the_least_comes_first() -> None:
    evidence = {"write": cases([0.02, 0.01, 0.5], [0.02, 0.01, 0.5]), "local": cases([0.6, 0.9, 0.1], [0.6, 0.9, 0.1])}
    roles = summarise(evidence, seed=0)["roles"]
    assert roles["do-nothing"]["confirmed_heads"] == ["L0H1", "L0H0"]
    assert roles["local"]["confirmed_heads"] == ["L0H1", "L0H0"]


def test_a_role_whose_evidence_was_not_measured_twice_says_so_and_explains_nothing() -> None:
    summary = summarise({"local": cases([0.9], [0.9]), "retrieval_score": cases([0.9])}, seed=0)
    assert summary["roles"]["retrieval"]["chosen"] is None
    assert summary["roles"]["retrieval"]["confirmed"] is None
    assert summary["overlap"]["roles"] == ["local"]
    assert "retrieval_score" not in summary["heads"][0]["evidence"]


def test_halves_are_even_and_odd_cases() -> None:
    first, second = halves({"x": cases([0.0], [1.0], [2.0], [3.0], [4.0])})
    assert first["x"].ravel().tolist() == [0, 2, 4]
    assert second["x"].ravel().tolist() == [1, 3]


def test_overlap_counts_shared_heads_beside_what_independence_would_give() -> None:
    found = overlap(masks(sink=[True, True, True, False], local=[True, False, False, True], none=[False] * 4))
    assert found["counts"] == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert found["expected"] == [[3, 1.5, 0], [1.5, 2, 0], [0, 0, 0]]
    assert found["jaccard"] == [[1, 0.25, 0], [0.25, 1, 0], [0, 0, None]]


def test_the_unexplained_are_those_without_any_role_beside_what_chance_would_leave() -> None:
    found = unexplained(masks(sink=[True, True, False, False], local=[True, False, False, False]))
    assert found["heads"] == ["L0H2", "L0H3"]
    assert found["value"] == 0.5
    assert found["expected"] == 0.5 * 0.75
    assert found["low"] < 0.5 < found["high"]


def test_only_the_group_whose_sinks_gain_without_the_needle_shows_a_difference() -> None:
    present = cases([0.2, 0.5, 0.7], [0.1, 0.5, 0.7], [0.3, 0.4, 0.8])
    absent = present + np.array([0.5, 0.0, 0.0]) + cases([0.0] * 3, [0.1, 0.0, 0.0], [0.2, 0.0, 0.0])
    found = needle_absent(present, absent, np.array([[True, False, False]]), seed=0)
    assert found["n"] == 3
    assert found["retrieval"]["present"]["value"] == pytest.approx(0.2)
    assert found["retrieval"]["difference"]["value"] == pytest.approx(0.6)
    assert found["retrieval"]["difference"]["low"] > 0.4
    assert found["others"]["heads"] == 2
    assert found["others"]["present"]["value"] == pytest.approx(0.6)
    assert found["others"]["difference"]["value"] == pytest.approx(0)
    assert needle_absent(present, absent, np.zeros((1, 3), bool), seed=0)["retrieval"] is None


def test_a_case_that_was_not_answered_gives_no_evidence_and_a_prompt_without_a_gate_does() -> None:
    records: list[dict[str, Any]] = [
        {"evidence": {"local": [[0.5]]}},
        {"evidence": {"retrieval_score": [[0.9]]}, "passed": False},
        {"evidence": {"retrieval_score": [[0.3]]}, "passed": True},
    ]
    found = evidence_of(records)
    assert found["local"].tolist() == [[[0.5]]]
    assert found["retrieval_score"].tolist() == [[[0.3]]]


def test_scores_of_a_retrieval_run_are_those_of_its_answered_cases() -> None:
    records = [
        {"passed": True, "scores": {"0-1": 0.5}},
        {"passed": False, "scores": {"1-0": 1.0}},
        {"passed": True, "scores": {}},
    ]
    assert scores_of(records, 2, 2).tolist() == [[[0, 0.5], [0, 0]], [[0, 0], [0, 0]]]


def test_thresholds_change_the_named_roles_only() -> None:
    changed = {role.name: role.threshold for role in with_thresholds("do-nothing=0.01, induction = 0.4")}
    assert changed == {role.name: role.threshold for role in ROLES} | {"do-nothing": 0.01, "induction": 0.4}


@pytest.mark.parametrize("text", ["wizard=0.3", "sink", "sink=much", "sink=1.5", "sink=nan"])
def test_a_threshold_for_no_role_or_that_is_no_share_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(HeadscopeError, match="--thresholds"):
        with_thresholds(text)
