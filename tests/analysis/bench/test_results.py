"""Verdicts, changes and wording of a result."""

from typing import Any

import pytest

from analysis.bench import verdicts
from analysis.bench.examples import asked, changes, controls_of
from analysis.bench.wording import LONGEST, differences


def point(
    low: float | None, high: float | None, value: float = 0.2, better: str = "higher", **more: Any
) -> dict[str, Any]:
    gap = {"difference": {"value": value, "low": low, "high": high}}
    return {"better": better, "treated_to_baseline": gap, "treated_to_control": None, "name": "treated"} | more


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (point(0.1, 0.3), verdicts.BETTER),
        (point(0.1, 0.3, better="lower"), verdicts.WORSE),
        (point(-0.3, -0.1, -0.2), verdicts.WORSE),
        (point(-0.3, -0.1, -0.2, better="lower"), verdicts.BETTER),
        (point(0.0, 0.4), verdicts.HELD),
        (point(-0.4, 0.0, -0.2), verdicts.HELD),
        (point(None, None, 0.0), verdicts.HELD),
        (point(None, None, -0.2), verdicts.WORSE),
    ],
)
def test_a_task_moved_where_the_interval_of_its_difference_leaves_zero_out(found: dict[str, Any], said: str) -> None:
    assert verdicts.verdict(found) == said


def test_a_move_is_told_from_what_random_heads_do() -> None:
    def against(low: float, high: float) -> dict[str, Any]:
        return point(0.1, 0.3, treated_to_control={"difference": {"value": 0.1, "low": low, "high": high}})

    assert verdicts.beyond_random(point(0.1, 0.3)) == verdicts.NO_CONTROLS
    assert verdicts.beyond_random(against(-0.1, 0.2)) == verdicts.AS_RANDOM
    assert verdicts.beyond_random(against(0.1, 0.2)) == verdicts.BEYOND


def test_tasks_are_gathered_by_verdict_the_losses_first() -> None:
    summary = {
        "tasks": {
            "held": {"points": [point(-0.1, 0.1)]},
            "won": {"points": [point(0.1, 0.3)]},
            "lost": {"points": [point(-0.3, -0.1, -0.2)]},
        }
    }
    found = verdicts.moved_and_held(summary, "treated")
    assert list(found.items()) == [(verdicts.WORSE, ["lost"]), (verdicts.BETTER, ["won"]), (verdicts.HELD, ["held"])]


def case(name: str, before: float, after: float, *random: float, task: str = "facts") -> dict[str, Any]:
    conditions = {"baseline": before, "w=1": after} | {f"w=1/random/{i}": value for i, value in enumerate(random)}
    return {
        "case": f"{task}/{name}", "example": name, "task": task,
        "conditions": {key: {"value": value} for key, value in conditions.items()} | {"w=10": {"value": 9.0}},
    }  # fmt: skip


def test_examples_stand_with_the_largest_loss_first_whichever_way_is_better() -> None:
    cases = [case("a", 1, 1), case("b", 1, 0, 1, 0), case("c", 0, 1), case("d", 1, 0, task="other")]
    found = changes(cases, "facts", "w=1", better="higher")
    assert [row["example"] for row in found] == ["b", "a", "c"]
    assert [row["gain"] for row in found] == [-1, 0, 1]
    assert [row["random"] for row in found] == [0.5, None, None]
    assert [row["example"] for row in changes(cases, "facts", "w=1", better="lower")] == ["c", "a", "b"]
    assert changes(cases, "facts", "w=3", better="higher") == []


def test_controls_of_a_point_are_not_those_of_one_whose_name_begins_alike() -> None:
    both = case("a", 1, 1, 0.0)
    both["conditions"]["w=10/random/0"] = {"value": 0.0}
    assert controls_of(both, "w=1") == ["w=1/random/0"]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"question": "Why?", "answers": ["so", "thus"]}, ("Why?", "so, thus")),
        ({"case": {"triple": {"question": "Where?", "answer": "here"}}}, ("Where?", "here")),
        ({"owners": ["Leo"], "things": ["a bell", "a belt"]}, ("", "a bell, a belt")),
        ({"chains": [["apple", "kettle"], ["other"]]}, ("", "apple, kettle")),
        ({"tokens": [1, 2]}, ("", "")),
        ({"case": "by hand"}, ("", "")),
    ],
)
def test_the_question_and_the_answer_of_an_example_are_found_in_what_its_task_kept(
    facts: dict[str, Any], said: tuple[str, str]
) -> None:
    assert asked(facts) == said


def test_words_that_differ_are_told_apart_in_both_texts_and_nothing_is_lost() -> None:
    first, second = "A red kite, high up.", "A blue kite high\nup."
    one, two = differences(first, second)
    assert "".join(text for text, _ in one) == first
    assert "".join(text for text, _ in two) == second
    assert [text for text, differs in one if differs] == ["red ", ", "]
    assert [text for text, differs in two if differs] == ["blue "]


def test_empty_and_very_long_texts_are_compared_in_no_time() -> None:
    assert differences("", "word") == ([], [("word", True)])
    long = "a b " * LONGEST
    one, two = differences(long, "c " + long)
    assert "".join(text for text, _ in one) == long
    assert two[0] == ("c ", True)
