"""`headscope circuits` writes what the library reads off the weights, and refuses in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.circuit import WORDS
from analysis.circuits import copying
from analysis.cli import main
from analysis.runs import list_runs
from probes.subject import load

pytestmark = pytest.mark.model


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["circuits", *arguments])
    assert ended.value.code == 0


def test_a_run_holds_the_copying_scores_the_circuits_and_the_pairs(
    tmp_path: Path, tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_folder(layers=3))
    asked = ("--model", model, "--heads", "top(copying, 2), L0H0", "--text", " Paris", "--out", str(tmp_path))
    run(*asked, "--json")
    summary = json.loads(capsys.readouterr().out)["summary"]
    [made] = list_runs(tmp_path)[0]
    frame = made.heads()
    scores = frame[frame["metric"] == "copying"]["value"].to_numpy().reshape(3, 4)
    assert scores == pytest.approx(copying(load(model)).values, abs=1e-4)
    assert {row["head"] for row in summary["heads"]} >= {"L0H0"}
    strongest = max(summary["heads"], key=lambda row: row["copying"])
    assert strongest["copying"] == pytest.approx(scores.max(), abs=1e-4)
    assert len(strongest["writes"][0]) == len(strongest["seeks"][0]) > 3
    for kind in "QKV":
        pairs = summary["composition"][kind]
        assert [pair["score"] for pair in pairs] == sorted((pair["score"] for pair in pairs), reverse=True)
        assert not frame[frame["metric"] == f"composition_{kind}"]["value"].isna().any()
    run(*asked, "--resume", "last")
    assert "looks for from" in capsys.readouterr().out
    assert len(list_runs(tmp_path)[0]) == 1


def test_every_head_is_said_to_write_and_whom_it_reads_and_who_reads_it(
    tmp_path: Path, tiny_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run("--model", str(tiny_folder(layers=3)), "--text", " Paris", "--out", str(tmp_path), "--json")
    summary = json.loads(capsys.readouterr().out)["summary"]
    everyone = {row["head"]: row for row in summary["every_head"]}
    assert len(everyone) == 3 * 4
    for row in summary["heads"]:
        assert everyone[row["head"]]["writes"][0] == row["writes"][0][:WORDS]
    assert everyone["L0H0"]["reads"] == everyone["L2H0"]["read_by"] == {}
    [made] = list_runs(tmp_path)[0]
    most = made.heads().set_index(["metric", "layer", "head"])["value"]
    for layer in (1, 2):
        for head in range(4):
            for kind, found in everyone[f"L{layer}H{head}"]["reads"].items():
                assert found["score"] == pytest.approx(most[f"composition_{kind}", layer, head], abs=1e-5)
    best = summary["composition"]["K"][0]
    assert everyone[best["reader"]]["reads"]["K"]["head"] == best["writer"]
    assert everyone[best["writer"]]["read_by"]["K"]["head"] == best["reader"]


@pytest.mark.parametrize(
    ("option", "value", "sentence"), [("--text", "", "--text is empty"), ("--heads", "L99", "L99")]
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["circuits", option, value, "--out", str(tmp_path / "runs")])
    assert ended.value.code == 1
    assert sentence in capsys.readouterr().err
