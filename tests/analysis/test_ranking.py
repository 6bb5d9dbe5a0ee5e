"""Heads leave a run in others' formats and come back as the same heads."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.head_lists import Shape, read_heads
from analysis.ranking import export, exported
from analysis.runs import Run, write_json
from analysis.selection import Scores, select
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError

SHAPE = Shape(layers=2, heads=4, kv_heads=2)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    path = tmp_path / "run"
    path.mkdir()
    manifest = {"format": 1, "command": "retrieval", "request_hash": "", "state": "finished", "seconds": 0}
    write_json(path / "manifest.json", {**manifest, "model": {"layers": 2, "heads": 4, "kv_heads": 2}})
    rows = [(i // 4, i % 4, "retrieval_score", value) for i, value in enumerate((0.1, 0.9, 0, 0.2, 0.7, 0, 0, 0.3))]
    pd.DataFrame(rows, columns=["layer", "head", "metric", "value"]).to_parquet(path / "heads.parquet")
    return Run(path)


def asked(form: str, **more: object) -> dict[str, object]:
    return {"metric": "retrieval_score", "form": form, "top": 3, "sink": 4, "window": 16, **more}


def test_scores_names_and_duo_files_read_back_as_the_heads_of_the_run(run: Run, tmp_path: Path, tiny) -> None:  # type: ignore[no-untyped-def]
    anatomy: Anatomy = tiny("llama").anatomy
    strongest = select("top(retrieval_score, 3)", anatomy, Scores(run.heads()))
    [names] = export(run, tmp_path / "names", **asked("names"))
    assert sorted(read_heads(names).names()) == [str(head) for head in strongest]
    [scores] = export(run, tmp_path / "scores", **asked("scores"))
    assert read_heads(scores).frame["value"].tolist() == run.heads()["value"].tolist()
    pattern, settings = export(run, tmp_path / "duo", **asked("duo"))
    assert read_heads(pattern.parent).frame["value"].tolist() == [0.9, 0.2, 0.7, 0.3]
    assert settings.name == "config.json"


def test_nothing_is_overwritten_and_what_a_format_can_not_hold_is_refused(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path / "out", **asked("names"))
    with pytest.raises(HeadscopeError, match="exists already"):
        export(run, tmp_path / "out", **asked("names"))
    with pytest.raises(HeadscopeError, match="--format: 'xml'"):
        exported(run, **asked("xml"))  # type: ignore[arg-type]
    with pytest.raises(HeadscopeError, match="no metric 'taste'"):
        exported(run, **asked("names", metric="taste"))  # type: ignore[arg-type]
