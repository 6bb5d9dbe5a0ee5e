"""A run that is damaged costs one sentence on its own pages; the rest of the dashboard goes on.

pytest tests/views/test_damaged.py
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from analysis.runs import list_runs

APP = Path(__file__).resolve().parents[2] / "app.py"


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _each(folder: Path, pattern: str, change: Callable[[Path], object]) -> None:
    for file in folder.glob(pattern):
        change(file)


HIDING = {  # the run is not listed, and one sentence says why
    "half a manifest": lambda path: _half(path / "manifest.json"),
    "a list for a manifest": lambda path: (path / "manifest.json").write_text("[]"),
    "a model that is a word": lambda path: (path / "manifest.json").write_text(
        '{"format": 1, "command": "map", "request_hash": "", "state": "finished", "seconds": 1, "model": "word"}'
    ),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "bytes that are no text": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe{}"),
}
SPOILING = {  # the run is listed, and its pages say what they can
    "a line of cases that is no JSON": lambda path: _each(path, "cases.jsonl", lambda file: file.write_text("{no\n")),
    "cases of another form": lambda path: _each(path, "cases.jsonl", lambda file: file.write_text('{"case": 1}\n[]\n')),
    "no cases": lambda path: _each(path, "cases.jsonl", Path.unlink),
    "no summary": lambda path: _each(path, "summary.json", Path.unlink),
    "a list for a summary": lambda path: _each(path, "summary.json", lambda file: file.write_text("[1]")),
    "an empty summary": lambda path: _each(path, "summary.json", lambda file: file.write_text("{}")),
    "numbers of heads that are none": lambda path: _each(path, "heads.parquet", lambda file: file.write_bytes(b"PAR1")),
    "arrays that are none": lambda path: _each(
        path, "arrays/*.safetensors", lambda file: file.write_bytes(b"\x10\0\0")
    ),
    "no arrays": lambda path: _each(path, "arrays/*.safetensors", Path.unlink),
}


def opened(page: str, run: str = "") -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=60)
    if run:
        app.query_params["run"] = run
    app.switch_page(f"views/{page}.py")
    app.run()
    assert not app.exception, (page, run, [error.value for error in app.exception])
    return app


@pytest.mark.parametrize("damage", SPOILING)
def test_every_page_of_a_spoilt_run_is_drawn_or_says_one_sentence(
    damage: str,
    every_run: Path,
    tmp_path: Path,
    visits: Callable[[Path], list[tuple[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    shutil.copytree(every_run, tmp_path, dirs_exist_ok=True)
    for run in list_runs(tmp_path)[0]:
        SPOILING[damage](run.path)
    for page, run_id in dict(reversed(visits(tmp_path))).items():  # one run for each page
        app = opened(page, run_id)
        said = [error.value for error in app.error]
        assert len(said) <= 1, (page, run_id, said)
        assert all("\n" not in each and "Traceback" not in each for each in said)
        assert app.title[0].value
        if page in ("home", "runs"):
            assert not said


@pytest.mark.parametrize("damage", HIDING)
def test_a_run_that_can_not_be_listed_is_one_sentence_and_the_others_are_there(
    damage: str, every_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    whole, spoilt = (tmp_path / name for name in ("20260101T000000Z-whole", "20260101T000001Z-spoilt"))
    first = next(run for run in list_runs(every_run)[0] if run.manifest["command"] == "retrieval")
    for path in (whole, spoilt):
        shutil.copytree(first.path, path)
    HIDING[damage](spoilt)
    for page in ("home", "runs"):
        app = opened(page)
        assert [spoilt.name in each.value.replace("\\", "") for each in app.warning] == [True], page
        assert not app.error
    assert not opened("needles", whole.name).error


def test_nothing_outside_the_folder_of_runs_is_opened(
    every_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    first = next(run for run in list_runs(every_run)[0] if run.manifest["command"] == "retrieval")
    shutil.copytree(first.path, elsewhere)
    shutil.copytree(first.path, folder / "whole")
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    shutil.copytree(first.path, folder / "inside")
    (folder / "inside" / "cases.jsonl").unlink()
    (folder / "inside" / "cases.jsonl").symlink_to(elsewhere / "cases.jsonl")
    monkeypatch.setenv("HEADSCOPE_RUNS", str(folder))
    found, problems = list_runs(folder)
    assert [run.id for run in found] == ["whole"]
    assert len([each for each in problems if "is a link to outside of" in each]) == 2
    for asked in ("../elsewhere", str(elsewhere), "linked", "inside", "whole/../../elsewhere"):
        app = opened("needles", asked)
        assert app.sidebar.selectbox[0].value == "whole"
        assert "which this run doesn't have" in app.warning[0].value


def test_a_folder_whose_name_is_no_text_is_one_sentence(
    every_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(run for run in list_runs(every_run)[0] if run.manifest["command"] == "retrieval")
    shutil.copytree(first.path, tmp_path / "whole")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    [warning] = opened("home").warning
    assert "has a name that is no text" in warning.value
