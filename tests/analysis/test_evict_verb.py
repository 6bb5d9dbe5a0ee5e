"""headscope evict: doing without sinks and massive activations, on models that have them."""

import json
from functools import partial
from pathlib import Path

import pytest

from analysis import eviction
from analysis.cli import main
from analysis.compiling import compile_plan
from analysis.interventions import parse
from analysis.runs import list_runs
from analysis.tasks import Perplexity
from probes.subject import Subject

SMALL = ["evict", "--model", "pair-softmax", "--tokens", "256", "--budget", "32", "--count", "4", "--json"]


def ran(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_a_cache_that_keeps_the_sink_loses_less_than_one_of_the_same_size_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(*SMALL, "--out", str(tmp_path))
    (task,) = json.loads(capsys.readouterr().out)["summary"]["tasks"].values()
    rise = {row["name"]: row["treated_to_baseline"]["difference"]["value"] for row in task["points"]}
    assert 0 < rise["way=sink+window"] < 0.5 * rise["way=window"]
    assert "way=sink+window, positions in cache" in rise
    assert not any("massive" in name for name in rise)  # this model has none
    before = (list_runs(tmp_path)[0][0].path / "summary.json").read_bytes()
    ran(*SMALL, "--out", str(tmp_path), "--resume", "last")
    assert (list_runs(tmp_path)[0][0].path / "summary.json").read_bytes() == before


def test_massive_activations_are_found_and_removed_in_the_default_model(
    smollm: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "LOOKED_AT", 2)
    monkeypatch.setattr(eviction, "LENGTH", 64)
    points = {point.name: point.text for point in eviction.points(eviction.Eviction(), smollm, seed=0)}
    assert "overwrite(507, 0, " in points["way=massive to zero"]
    assert "overwrite(507, 2" in points["way=massive to mean"]  # some 23,000
    perplexity = Perplexity(tokens=64, stride=32)
    (window,) = perplexity.examples(smollm, count=1, seed=0)
    record = perplexity.judge(
        smollm,
        window,
        {
            name: partial(compile_plan, smollm.anatomy, parse(points[f"way={name}"]))
            for name in ("massive to zero", "massive to mean")
        },
    )
    losses = {name: outcome["value"] for name, outcome in record["conditions"].items()}
    assert losses["massive to zero"] > losses["massive to mean"] + 3


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--sink", "32", "--budget", "32"], "begins with 1 to 31"),
        (["--budget", "256", "--tokens", "256"], "evicts nothing"),
    ],
)
def test_a_cache_that_can_not_be_is_refused_in_a_sentence(
    given: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evict", "--model", "pair-softmax", *given, "--out", str(tmp_path)])
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
