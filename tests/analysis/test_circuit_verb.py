"""`headscope circuits` writes what the library reads off the weights, and refuses in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
