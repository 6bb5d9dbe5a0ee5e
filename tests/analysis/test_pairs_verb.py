"""headscope pairs: the trained models side by side."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis import pairs
from analysis.cli import main
from analysis.runs import list_runs

TWO = ("pairs", "--models", "pair-softmax,pair-headwise-gate", "--windows", "2")


@pytest.fixture(autouse=True)
def _few_texts_fix_the_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "CALIBRATION", 2)


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    return dict(json.loads(capsys.readouterr().out))


def test_a_gate_takes_away_the_sink_the_large_activations_and_what_8_bits_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ran(capsys, *TWO, "--out", str(tmp_path), "--json")["summary"]
    softmax, gate = ({row["rule"]: row for row in found["models"]}[rule] for rule in ("softmax", "headwise_gate"))
    assert gate["first_share"]["value"] < softmax["first_share"]["value"] / 3
    assert gate["largest_activation"]["value"] < softmax["largest_activation"]["value"] / 2
    assert 0 < gate["int8_rise"]["value"] < softmax["int8_rise"]["value"] / 2
    assert abs(gate["loss"]["value"] - softmax["loss"]["value"]) < 0.3
    assert {curve["rule"] for curve in found["curves"]} == {"softmax", "headwise_gate"}
    assert {curve["seed"] for curve in found["curves"]} == {0, 1, 2}
    [run] = list_runs(tmp_path)[0]
    before = [(run.path / name).read_bytes() for name in ("cases.jsonl", "summary.json")]
    (run.path / "cases.jsonl").write_bytes(before[0][: len(before[0]) * 3 // 4])  # killed in the middle of a line
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "state": "stopped"}))
    assert ran(capsys, *TWO, "--out", str(tmp_path), "--json", "--resume", "last")["summary"] == found
    assert [(run.path / name).read_bytes() for name in ("cases.jsonl", "summary.json")] == before


def test_a_dry_run_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*TWO, "--out", str(tmp_path), "--dry-run"])
    assert "Nothing was run" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--models", "pair-softmax,pair-nothing"), "There is no model 'pair-nothing'"),
        (("--models", "pair-softmax,pair-softmax"), "twice"),
        (("--models", "pair-softmax", "--windows", "9999"), "ask for at most"),
    ],
)
def test_what_can_not_be_compared_is_refused_in_a_sentence(
    given: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["pairs", *given, "--out", str(tmp_path)])
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
