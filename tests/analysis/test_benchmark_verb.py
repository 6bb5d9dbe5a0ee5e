"""`headscope benchmark` from the command line: tasks of lm-evaluation-harness before and after, as a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

import datasets
import huggingface_hub
import lm_eval.tasks.manager

from analysis import benchmark
from analysis.cli import main
from analysis.harness import evaluate_tasks
from analysis.runs import Run, find_run
from probes.plan import LayerPlan, Plan
from probes.subject import load

TASKS = Path(__file__).parent / "tasks_local"
BOTH = "headscope_choice,headscope_capitals"

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> str:
    return str(tiny_folder())


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Our task files name their data relative to the working directory."""
    monkeypatch.chdir(TASKS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    # lm-eval looks for its own tasks beside its code, for many seconds.
    monkeypatch.setattr(lm_eval.tasks.manager, "__file__", str(tmp_path / "manager.py"))


def asked(model: str, out: Path, *options: str, what: str = "output_zero @ L0", task: str = BOTH) -> list[str]:
    return ["benchmark", what, "--task", task, "--include", str(TASKS), "--limit", "3", "--model", model,
            "--device", "cpu", "--out", str(out), *options]  # fmt: skip


def finished(arguments: list[str], out: Path) -> Run:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return find_run("last", out, command="benchmark")


def test_each_condition_scores_what_the_library_scores_for_it(model: str, tmp_path: Path) -> None:
    run = finished(asked(model, tmp_path), tmp_path)
    cut = LayerPlan(output_scale=torch.zeros(1, 4))
    plan = Plan(prefill={0: cut}, decode={0: cut})
    expected = evaluate_tasks(
        load(model, device="cpu"), BOTH.split(","), include=TASKS, interventions={"cut": lambda prompt: plan},
        limit=3, seed=0,
    )  # fmt: skip
    tasks = run.summary()["tasks"]
    assert set(tasks) == set(expected)
    for name, result in expected.items():
        for metric, found in result.metrics.items():
            said = tasks[name][metric]
            assert said["scores"]["baseline"] == found.scores["baseline"]
            assert said["scores"]["treated"] == found.scores["cut"]
            assert said["differences"]["treated"]["value"] == found.differences["cut"].value
            assert said["n"] == 3
    random_heads = run.manifest["request"]["arms"]["treated/random/0"]
    assert random_heads == ["output_zero @ L1H0, L1H1, L1H2, L1H3"]
    assert set(run.cases()[0]["metrics"]["acc,none"]["values"]) == {"baseline", "treated", "treated/random/0"}


def test_a_stopped_run_goes_on_with_the_tasks_that_are_left(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished(asked(model, tmp_path / "whole", "--controls", "0"), tmp_path / "whole")
    evaluated: list[str] = []
    evaluate = benchmark.evaluate_task

    def watched(subject: Any, name: str, task: Any, **settings: Any) -> Any:
        if evaluated == [whole.cases()[0]["case"]]:
            evaluated.append("stopped")
            raise KeyboardInterrupt
        evaluated.append(name)
        return evaluate(subject, name, task, **settings)

    monkeypatch.setattr(benchmark, "evaluate_task", watched)
    arguments = asked(model, tmp_path / "stopped", "--controls", "0")
    with pytest.raises(SystemExit):
        main(arguments)
    resumed = finished([*arguments, "--resume", "last"], tmp_path / "stopped")
    first, second = (case["case"] for case in whole.cases())
    assert evaluated == [first, "stopped", second]
    for name in ("cases.jsonl", "summary.json"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_answers_as_json_are_the_summary_and_nothing_else(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(asked(model, tmp_path, "--controls", "0", "--json", task="headscope_choice"), tmp_path)
    assert json.loads(capsys.readouterr().out)["summary"] == run.summary()


def test_the_terminal_shows_every_condition_beside_the_baseline(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(asked(model, tmp_path, task="headscope_choice"), tmp_path)
    said = capsys.readouterr().out
    assert "acc,none" in said
    for name in ("baseline", "treated", "treated/random/0"):
        assert f"│ {name} " in said


def test_heads_are_chosen_from_a_list_as_in_the_other_verbs(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "heads.json").write_text('["L1H2"]')
    arguments = asked(
        model,
        tmp_path,
        "--heads-from",
        str(tmp_path / "heads.json"),
        "--dry-run",
        what="output_zero @ above(listed, 0.5)",
    )
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "treated: output_zero @ L1H2" in capsys.readouterr().out


def test_heads_can_not_be_chosen_from_a_run_that_ranked_none(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = finished(asked(model, tmp_path, "--controls", "0", task="headscope_choice"), tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(asked(model, tmp_path, "--heads-from", source.id, what="output_zero @ top(listed, 1)"))
    assert ended.value.code == 1
    assert f"{source.id} ranked no heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "headscope_choise"}, "no task 'headscope_choise'"),
        ({"task": ","}, "at least one task"),
        ({"what": "output_zero @ L7"}, "L7"),
        ({"what": "output_zero @ L{layer}"}, "{layer} has no values"),
        ({"what": "output_zero @ top(retrieval_score, 1)"}, "no finished retrieval run"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence_and_leaves_no_run(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(asked(model, tmp_path / "runs", **options))
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_intervention_that_acts_only_in_decoding_is_refused_where_nothing_is_decoded(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(asked(model, tmp_path, what="output_zero @ L0 in decode", task="headscope_choice"))
    assert ended.value.code == 1
    assert "'treated' acts only in the decode phase" in capsys.readouterr().err
