"""`headscope hallucinate`: the same pictures and questions for every arm, and what is made of the answers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import cli_vision
from analysis.cli import main
from analysis.runs import Run, list_runs
from analysis.vision import answering, scenes
from analysis.vision.answering import NONE, Arm, arms, ask, units
from analysis.vision.cases import Choice, picture_sets
from analysis.vision.hallucinate import Asked
from analysis.vision.hallucination_summary import judge_pope, summarise
from analysis.vision.mitigations import mitigation
from analysis.vision.pope import SPLITS
from probes.errors import HeadscopeError
from tests.probes.families import folder_of

Verb = Callable[..., Run]


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture
def run_hallucinate(tmp_path: Path, tiny_llava: Path) -> Verb:
    def run(*more: str, model: str = str(tiny_llava)) -> Run:
        given = ["--model", model, "--pictures", "themed-clear", "--count", "3", "--batch", "2", "--json"]
        before = {run.id for run in list_runs(tmp_path)[0]}
        with pytest.raises(SystemExit) as ended:
            main(["hallucinate", *given, "--out", str(tmp_path), *more])
        assert ended.value.code == 0
        runs = list_runs(tmp_path)[0]
        return next((run for run in runs if run.id not in before), runs[0])

    return run


def caption_row(picture: str, true: int, hallucinated: int, tokens: int = 10) -> dict[str, Any]:
    """A picture of two objects, of which so many are named, and so many that are not there."""
    counts = {"mentioned": true + hallucinated, "hallucinated": hallucinated, "distinct": true + hallucinated,
              "found": true, "true": 2, "words": tokens, "tokens": tokens}  # fmt: skip
    objects = [{"name": name, "box": [0, 0, 1, 1]} for name in ("a", "b")]
    mentions = [{"name": name} for name in [*"ab"[:true], *"xyz"[:hallucinated]]]
    return {"picture": picture, "objects": objects, "mentions": mentions, "likely": ["x"], "counts": counts}


def record(arm: str, task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"set": "s", "arm": arm, "task": task, "rows": rows}


def test_every_arm_answers_for_the_same_pictures_and_stops_whole(run_hallucinate: Verb) -> None:
    run = run_hallucinate("--mitigations", "vhr; pai", "--controls", "2", "--new-tokens", "6", "--count", "2")
    order = ["none", "vhr", "vhr, random heads 1", "vhr, random heads 2", "pai"]
    summary = run.summary()
    assert [arm["name"] for arm in summary["arms"]] == order
    asked: dict[str, list[Any]] = {}
    for case in run.cases():
        places = [(row["picture"], row.get("object")) for row in case["rows"]]
        asked.setdefault(f"{case['task']} {case['arm']}", []).extend(places)
    assert len({tuple(places) for name, places in asked.items() if name.startswith("captions")}) == 1
    assert len({tuple(places) for name, places in asked.items() if name.startswith("pope")}) == 1
    found = summary["sets"]["themed-clear"]["arms"]
    assert "to_none" not in found["none"]["captions"]
    assert [one["arm"] for one in found["vhr"]["pope"]["to_controls"]] == order[2:4]
    assert found["pai"]["captions"]["to_controls"] == []
    assert found["vhr"]["captions"]["to_none"]["verdict"] in ("no effect", "helps", "hurts")
    assert "NaN" not in json.dumps(summary)


def test_a_tokenizer_without_the_words_has_its_answers_read_as_text(run_hallucinate: Verb) -> None:
    run = run_hallucinate("--mitigations", "none", "--tasks", "pope")
    rows = [row for case in run.cases() for row in case["rows"]]
    assert all(row["share"] is None for row in rows)
    assert {row["yes"] for row in rows} <= {True, False}


def test_a_question_of_several_splits_is_asked_once() -> None:
    among = picture_sets(Choice(pictures="themed-clear", count=12))[0]
    asked = ask(among, seed=0)
    assert len({(one.picture.id, one.object) for one in asked}) == len(asked)
    present = [one for one in asked if one.present]
    assert all(one.splits == SPLITS for one in present)
    for split in SPLITS:
        own = [one for one in asked if split in one.splits]
        assert sum(one.present for one in own) * 2 == len(own)
    assert {one.text for one in asked if one.object == "apple"} <= {"Is there an apple in the image?"}


def test_adversarial_questions_ask_for_what_keeps_company_in_training_where_it_was_withheld() -> None:
    among = picture_sets(Choice(pictures="counter-clear", count=30))[0]
    partners = scenes.world().partners
    asked = [one for one in ask(among, seed=0) if not one.present]

    def expected(split: str) -> float:
        own = [one for one in asked if split in one.splits]
        near = [any(one.object in partners.get(name, ()) for name in one.picture.names) for one in own]
        return sum(near) / len(near)

    assert expected("adversarial") > 2 * expected("random")


def test_none_comes_first_and_once_and_controls_follow_what_they_control() -> None:
    found = arms("boost(1.3); vhr(alpha=1.5); none; vhr(alpha=1.5)", controls=1, seed=7)
    assert [arm.name for arm in found] == [NONE, "boost(1.3)", "vhr(alpha=1.5)", "vhr(alpha=1.5), random heads 1"]
    assert found[3].control_of == "vhr(alpha=1.5)"
    assert found[3].seed != found[2].seed


def test_batches_draw_random_heads_of_their_own() -> None:
    among = picture_sets(Choice(pictures="themed-clear", count=4))
    arm = Arm(NONE, mitigation(NONE), 0)
    first, second = units(among, [arm], ["captions"], batch=2, seed=0)
    assert first.id != second.id
    assert first.seed != second.seed
    assert first.seed == units(among, [arm], ["captions"], batch=2, seed=0)[0].seed


def test_inventing_less_at_the_same_recall_helps_and_saying_less_is_told_apart() -> None:
    pictures = [f"p{i}" for i in range(20)]
    treatments = {NONE: (2, 2, 10), "good": (2, 0, 10), "terse": (1, 0, 4)}
    records = [
        record(arm, "captions", [caption_row(picture, *numbers) for picture in pictures])
        for arm, numbers in treatments.items()
    ]
    chosen = [Arm(name, mitigation(NONE), 0) for name in treatments]
    found = summarise(records, ["s"], chosen, seed=0)["sets"]["s"]["arms"]
    assert found[NONE]["captions"]["chair"]["chair_i"]["value"] == pytest.approx(1 / 2)
    assert found[NONE]["captions"]["amber"]["cog"]["value"] == pytest.approx(1 / 4)
    assert found["good"]["captions"]["to_none"]["verdict"] == "helps"
    assert not found["good"]["captions"]["to_none"]["length_changed"]
    assert found["terse"]["captions"]["to_none"]["verdict"] == "trades recall"
    assert found["terse"]["captions"]["to_none"]["length_changed"]
    difference = found["good"]["captions"]["to_none"]["difference"]["chair_i"]
    assert difference["value"] == pytest.approx(-1 / 2)


def test_the_mean_f1_is_that_of_the_three_splits() -> None:
    rows = []
    for i in range(8):
        rows.append({"picture": f"p{i}", "object": "a", "present": True, "yes": i % 4 > 0, "splits": list(SPLITS)})
        rows.append({"picture": f"p{i}", "object": "b", "present": False, "yes": i < 2, "splits": ["random"]})
        rows.append({"picture": f"p{i}", "object": "c", "present": False, "yes": i < 6, "splits": list(SPLITS[1:])})
    found = judge_pope(rows, seed=0)
    each = [found["splits"][split]["f1"]["value"] for split in SPLITS]
    assert each == pytest.approx([12 / 16, 12 / 20, 12 / 20])
    assert found["mean_f1"]["value"] == pytest.approx(sum(each) / 3)
    assert found["mean_f1"]["low"] < found["mean_f1"]["value"] < found["mean_f1"]["high"]


def test_always_yes_is_no_certainty() -> None:
    rows = [
        {"picture": f"p{i}", "object": name, "present": name == "a", "yes": True, "splits": list(SPLITS)}
        for i in range(5)
        for name in "ab"
    ]
    found = judge_pope(rows, seed=0)["mean_f1"]
    assert found["value"] == pytest.approx(2 / 3)
    assert found["low"] < found["value"] < found["high"]


def test_the_heads_of_a_boost_are_ranked_on_other_pictures(
    run_hallucinate: Verb, tmp_path: Path, tiny_llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(tiny_llava), "--pictures", "themed-clear", "--count", "2", "--out", str(tmp_path)]
    for part in ("dev", "judge"):
        with pytest.raises(SystemExit):
            main(["vision", *given, "--new-tokens", "4", "--shown", "0", "--part", part])
    asked = ["--mitigations", "boost(1.5, top=2)", "--tasks", "captions", "--new-tokens", "4"]
    dev, judge = sorted(list_runs(tmp_path)[0], key=lambda run: run.manifest["request"]["part"])
    run = run_hallucinate(*asked, "--heads-from", dev.id)
    assert run.summary()["arms"][2]["control_of"] == "boost(1.5, top=2)"
    with pytest.raises(SystemExit):
        main(["hallucinate", *given, *asked, "--heads-from", judge.id])
    assert "also ranked the heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mitigations", "magic"], "There is no mitigation 'magic'"),
        (["--tasks", "vqa"], "--tasks takes captions, pope, or both"),
        (["--mitigations", "boost(1.5, top=2)"], "chooses heads by their scores"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_a_sentence(
    options: list[str], sentence: str, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["hallucinate", "--model", str(tiny_llava), "--count", "2", "--out", str(tmp_path), *options])
    assert sentence in capsys.readouterr().err


def test_the_command_line_and_the_script_try_the_same_by_default() -> None:
    asked = Asked()
    assert (asked.mitigations, asked.pictures, asked.question) == (cli_vision.FEW, cli_vision.SETS, cli_vision.QUESTION)


def test_the_script_needs_no_typer() -> None:
    code = "import sys; sys.modules['typer'] = None; import analysis.vision.hallucinate, analysis.vision.vision_run"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.model
def test_our_own_model_is_asked_by_the_probability_of_yes(
    run_hallucinate: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "ask", lambda among, seed: ask(among, seed=seed)[:4])
    run = run_hallucinate("--mitigations", "none", "--count", "2", "--new-tokens", "12", model="emoji-llava")
    rows = {case["task"]: case["rows"] for case in run.cases()}
    assert all(0 <= row["share"] <= 1 and row["yes"] == (row["share"] > 0.5) for row in rows["pope"])
    assert all(row["caption"].startswith(("This is", "The image shows")) for row in rows["captions"])


def test_a_mitigation_that_is_an_intervention_is_taken_as_it_stands() -> None:
    assert len(arms("weight(image, 1.2) @ all", controls=1, seed=0)) == 2
    assert len(arms("weight(image, 1.2) @ L0H1", controls=1, seed=0)) == 3
    with pytest.raises(HeadscopeError):
        arms("weight(image, 1.2) @ nowhere", controls=1, seed=0)
