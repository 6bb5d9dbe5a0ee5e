"""An intervention is judged against heads that were left alone, point by point, and saved runs can be compared."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import streaming
from analysis.comparing import compare_runs
from analysis.evaluation import Work
from analysis.intervene import Arm, Point, arms, chosen_tasks, points, summarise
from analysis.interventions import parse
from analysis.runs import OpenRun
from analysis.selection import Scores
from analysis.study import ModelChoice
from analysis.tasks import Needle, Task, tasks
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head, parse_heads
from probes.subject import Subject

NEEDLE = {"needle": Needle()}


@pytest.fixture
def anatomy(tiny: Callable[..., Subject]) -> Anatomy:
    """Two layers of four query heads in two KV groups."""
    return tiny("llama").anatomy


def tried(
    anatomy: Anatomy, *texts: str, controls: int = 3, protected: str = "", scores: Scores | None = None, seed: int = 0
) -> list[Arm]:
    asked = [Point(text, (("i", str(i)),)) for i, text in enumerate(texts)]
    kept = frozenset(parse_heads(protected)) if protected else frozenset[Head]()
    return arms(asked, anatomy, scores, controls=controls, protected=kept, seed=seed)


def controls_of(tested: Sequence[Arm], name: str) -> list[frozenset[Head]]:
    return [arm.heads for arm in tested if arm.of == name]


# Points


def test_every_combination_of_values_is_a_point_named_by_them() -> None:
    found = points("weight(needle, {w}) @ L{layer}", {"layer": ["0", "1"], "w": ["0", "2"]})
    assert [point.text for point in found] == [
        "weight(needle, 0) @ L0", "weight(needle, 0) @ L1", "weight(needle, 2) @ L0", "weight(needle, 2) @ L1",
    ]  # fmt: skip
    assert found[1].name == "w=0, layer=1"


def test_an_intervention_without_variables_is_one_point() -> None:
    [point] = points("query_zero @ L0H0", {})
    assert point == Point("query_zero @ L0H0")
    assert point.name == "treated"


def test_a_variable_may_stand_twice_and_other_braces_stay() -> None:
    [point] = points("scale({x}) @ L{x}; {y", {"x": ["1"]})
    assert point.text == "scale(1) @ L1; {y"


@pytest.mark.parametrize(
    ("template", "over", "says"),
    [
        ("scale({x}) @ L0", {}, "{x} has no values"),
        ("scale({x}) @ L0", {"x": []}, "{x} has no values"),
        ("scale(2) @ L0", {"x": ["1"]}, "{x} does not stand in"),
    ],
)
def test_a_variable_without_values_and_values_without_a_variable_are_refused(
    template: str, over: dict[str, list[str]], says: str
) -> None:
    with pytest.raises(HeadscopeError, match=says):
        points(template, over)


# Arms and their controls


@pytest.mark.parametrize("seed", range(5))
def test_no_control_holds_a_treated_or_a_protected_head(anatomy: Anatomy, seed: int) -> None:
    tested = tried(anatomy, "query_zero @ L0H0, L1H1", protected="L0H3, L1H2", seed=seed)
    sets = controls_of(tested, "i=0")
    assert len(sets) == 3
    forbidden = set(parse_heads("L0H0, L1H1, L0H3, L1H2"))
    for heads in sets:
        assert not heads & forbidden
        assert sorted(head.layer for head in heads) == [0, 1]


def test_the_same_heads_have_the_same_controls_whatever_is_done_to_them(anatomy: Anatomy) -> None:
    tested = tried(anatomy, "query_zero @ L0H0, L1H1", "weight(needle, 2) @ L0H0, L1H1 on generated")
    assert controls_of(tested, "i=0") == controls_of(tested, "i=1")
    acted = [arm.interventions[0] for arm in tested if arm.of == "i=1"]
    assert {(str(each.operation), each.queries, each.phase) for each in acted} == {
        ("weight(needle, 2)", "generated", "both")
    }


@pytest.mark.parametrize("seed", range(5))
def test_what_is_done_to_two_heads_is_never_done_twice_to_one_control_head(anatomy: Anatomy, seed: int) -> None:
    tested = tried(anatomy, "query_zero @ L0H0; output_zero @ L0H1; scale(2) @ L0H0", seed=seed)
    controls = [arm for arm in tested if arm.of]
    assert len(controls) == 3
    for arm in controls:
        first, second, again = (each.named for each in arm.interventions)
        assert first == again
        assert first != second
        assert len(arm.heads) == 2


@pytest.mark.parametrize(
    ("text", "protected"), [("query_zero @ all", ""), ("scale(0.5) @ L0, L1H0", ""), ("scale(0.5) @ L0", "L1H3")]
)
def test_a_point_that_leaves_too_few_heads_has_no_control(anatomy: Anatomy, text: str, protected: str) -> None:
    assert [arm.name for arm in tried(anatomy, text, protected=protected)] == ["baseline", "i=0"]


def test_a_random_selector_of_the_users_keeps_off_protected_heads(anatomy: Anatomy) -> None:
    [_, arm] = tried(anatomy, "query_zero @ random(L0H0, 0)", controls=0, protected="L0H1, L0H2")
    assert arm.heads == {Head(0, 3)}


def test_a_points_own_controls_stand_in_for_random_heads(anatomy: Anatomy) -> None:
    point = Point("stream(1, 2) @ L0", (), ("stream(1, 2) @ L1",))
    found = arms([point], anatomy, None, controls=3, protected=frozenset(), seed=0)
    assert [(arm.name, arm.of) for arm in found[1:]] == [("treated", None), ("treated/random/0", "treated")]
    assert found[2].heads == {Head(1, head) for head in range(4)}


# Tasks with settings


def test_settings_take_the_kind_of_their_usual_values() -> None:
    found = chosen_tasks("needle(lengths=256+300, depths=0.5, role=detect), copying(length=8)")
    assert list(found) == ["needle(lengths=256+300, depths=0.5, role=detect)", "copying(length=8)"]
    needle = next(iter(found.values()))
    assert needle == Needle(role="detect", lengths=(256, 300), depths=(0.5,))
    assert found["copying(length=8)"] == type(tasks()["copying"])(length=8)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--task is empty"),
        ("poetry", "There is no task 'poetry'"),
        ("needle(colour=red)", "no setting 'colour'"),
        ("needle(256)", "no setting '256'"),
        ("needle(lengths=short)", "lengths=short is no setting"),
        ("copying(length=1)", "too short"),
        ("perplexity(tokens=64, stride=64)", "stride"),
        ("needle(lengths=256", "brackets"),
    ],
)
def test_tasks_and_settings_there_are_not_are_refused(text: str, says: str) -> None:
    with pytest.raises(HeadscopeError, match=says):
        chosen_tasks(text)


# The summary


def record(task: str, i: int, **values: float) -> dict[str, Any]:
    return {
        "case": f"{task}/{i}",
        "task": task,
        "facts": {"case": {"length": 1000}},
        "conditions": {name: {"value": value} for name, value in values.items()},
        "applied": {},
    }


def test_a_row_of_the_summary_sets_each_point_against_baseline_and_its_own_controls() -> None:
    tested = [
        Arm("baseline"),
        Arm("a", parse("query_zero @ L0H0")),
        Arm("a/random/0", parse("query_zero @ L0H1"), "a"),
        Arm("b", parse("query_zero @ L1H0")),
    ]
    values = {"baseline": 1.0, "a": 0.0, "a/random/0": 1.0, "b": 1.0}
    records = [record("needle", i, **values) | {"applied": {"a": _report("blocks", lost=i)}} for i in range(12)]
    found = summarise(records, NEEDLE, tested, seed=0)
    a, b = found["tasks"]["needle"]["points"]
    assert (a["treated_to_baseline"]["difference"]["value"], b["treated_to_baseline"]["difference"]["value"]) == (-1, 0)
    assert a["treated_to_control"]["difference"]["value"] == -1
    assert a["treated_to_baseline"]["worsened"] == 12
    assert b["control"] is None
    assert a["p_holm"] == pytest.approx(2 * a["treated_to_baseline"]["p"])
    assert found["controls"] == {"a/random/0": ["L0H1"]}
    assert found["applied"]["a"] == {
        "paths": {"prefill": ["blocks"]}, "rows_without_key": sum(range(12)), "rows_without_target": 0,
    }  # fmt: skip
    assert found["applied"]["b"]["paths"] == {}


def test_each_task_is_summarised_over_its_own_examples() -> None:
    chosen: dict[str, Task] = {**NEEDLE, "perplexity": tasks()["perplexity"]}
    tested = [Arm("baseline"), Arm("a", parse("query_zero @ L0H0"))]
    records = [record("needle", i, baseline=1, a=1) for i in range(3)]
    records += [record("perplexity", i, baseline=3 + i, a=4 + i) for i in range(5)]
    found = summarise(records, chosen, tested, seed=0)
    assert found["n_cases"] == 8
    assert {name: task["n"] for name, task in found["tasks"].items()} == {"needle": 3, "perplexity": 5}
    change = found["tasks"]["perplexity"]["points"][0]["treated_to_baseline"]
    assert change["difference"]["value"] == pytest.approx(1)
    assert change["worsened"] == 5


def _report(path: str, *, lost: int) -> dict[str, Any]:
    return {"paths": {"prefill": [path]}, "rows_without_key": lost, "rows_without_target": 0}


# The cache saved


def test_the_curve_counts_the_groups_of_each_point_that_do_not_stream(tiny: Callable[..., Subject]) -> None:
    subject = tiny("llama")
    anatomy = subject.anatomy
    scores = Scores(pd.DataFrame([(h.layer, h.head, "m", float(h.head)) for h in anatomy.heads()],
                                 columns=["layer", "head", "metric", "value"]))  # fmt: skip
    asked = [Point("stream(4, 96) @ all", (("kept", "0%"),)),
             Point("stream(4, 96) @ not(top_groups(m, 50%))", (("kept", "50%"),))]  # fmt: skip
    tested = arms(asked, anatomy, scores, controls=0, protected=frozenset(), seed=0)
    work = Work(subject, ModelChoice("tiny"), dict(NEEDLE), [], tested, {})
    records = [record("needle", i, baseline=1, **{"kept=0%": 0.0, "kept=50%": 1.0}) for i in range(10)]
    cache = streaming.Cache(keep=[0, 50], sink=4, window=96, metric="m")
    found = streaming.saving(work, records, cache=cache, seed=0)["curve"]
    assert [(row["full_groups"], row["accuracy"]) for row in found["rows"]] == [(2, 1), (0, 0)]
    assert [row["saved"] for row in found["rows"]] == pytest.approx([0.45, 0.9])
    assert found["operating_point"]["full_groups"] == 2
    assert found["groups"] == 4
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# Two runs against each other


def save(
    out: Path,
    *values: float,
    command: str = "intervene",
    names: Sequence[str] = ("treated",),
    length: int = 512,
    sha256: str = "0",
) -> str:
    """A finished run in which each example was wrong without and has these values under every point."""
    with OpenRun.start(out, command, {"values": values, "names": names, "length": length}) as run:
        run.note(model={"name": "tiny", "sha256": sha256})
        for i, value in enumerate(values):
            conditions = {name: {"value": value} for name in names}
            case = record("needle", i, baseline=0)
            run.add_case(case | {"facts": {"length": length}, "conditions": case["conditions"] | conditions})
        run.finish(heads=None, summary={"tasks": {"needle": {"points": [{"name": name} for name in names]}}})
    return run.run.id


def test_two_runs_are_compared_example_by_example_on_those_that_both_judged(tmp_path: Path) -> None:
    first, second = save(tmp_path, 0, 0, 1, 1), save(tmp_path, 1, 1, 1)
    found = compare_runs(first, second, tmp_path, seed=0)
    assert found["examples"] == 3
    assert found["first"] == f"{first}:treated"
    change = found["tasks"]["needle"]["treated_to_baseline"]
    assert change["difference"]["value"] == pytest.approx(2 / 3)
    assert (change["improved"], change["worsened"]) == (2, 0)
    assert found["baselines_differ"] == 0


@pytest.mark.parametrize("command", ["sweep", "stream"])
def test_a_point_of_a_run_with_several_is_named(tmp_path: Path, command: str) -> None:
    run = save(tmp_path, 0, 1, command=command, names=("w=0", "w=2"))
    found = compare_runs(f"{run}:w=0", f"{run}:w=2", tmp_path, seed=0)
    assert found["second"] == f"{run}:w=2"
    with pytest.raises(HeadscopeError, match="name one, such as"):
        compare_runs(run, f"{run}:w=2", tmp_path, seed=0)
    with pytest.raises(HeadscopeError, match="has no point 'w=9'"):
        compare_runs(f"{run}:w=9", f"{run}:w=2", tmp_path, seed=0)


def test_examples_of_one_name_that_are_not_the_same_are_not_paired(tmp_path: Path) -> None:
    first, second = save(tmp_path, 0, 1), save(tmp_path, 0, 1, length=1024)
    with pytest.raises(HeadscopeError, match="share no example"):
        compare_runs(first, second, tmp_path, seed=0)


def test_runs_of_other_models_and_of_other_commands_are_not_compared(tmp_path: Path) -> None:
    run = save(tmp_path, 0, 1)
    with pytest.raises(HeadscopeError, match="different models"):
        compare_runs(run, save(tmp_path, 0, 1, sha256="1"), tmp_path, seed=0)
    with pytest.raises(HeadscopeError, match="no points to compare"):
        compare_runs(run, save(tmp_path, 0, 1, command="retrieval"), tmp_path, seed=0)
