"""`headscope submit`, `headscope jobs`, `headscope worker`: what they print, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.cli import main
from analysis.jobs.folder import jobs

Typed = Callable[..., tuple[str, str]]


@pytest.fixture
def typed(out: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a line, and returns what it printed and what it complained of."""

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.err
        return said.out, said.err

    return run


def test_a_line_is_queued_listed_cancelled_and_run(out: Path, typed: Typed) -> None:
    place = ("--out", str(out))
    first, hint = typed("submit", *place, "models", "--json")
    assert "headscope worker" in hint
    second, _ = typed("submit", *place, "retrieval", "--grid", "quick")
    typed("jobs", "cancel", second.strip(), *place)
    listed = json.loads(typed("jobs", "--json", *place)[0])
    assert [(job["id"], job["state"]) for job in listed] == [(first.strip(), "queued"), (second.strip(), "cancelled")]
    typed("worker", *place, "--idle", "0")
    assert [job.facts.state for job in jobs(out)[0]] == ["done", "cancelled"]
    shown = typed("jobs", *place)[0]
    assert "done" in shown
    assert "cancelled" in shown


def test_load_says_what_a_model_is_and_what_it_takes(typed: Typed, tiny_folder: Callable[..., Path]) -> None:
    words = " ".join(typed("load", str(tiny_folder()), "--device", "cpu")[0].split())
    assert "2 layers of 4 query heads over 2 KV heads of size 8, a window of 512 tokens." in words
    assert "is let go" in words
    facts = json.loads(typed("load", str(tiny_folder()), "--device", "cpu", "--dtype", "bfloat16", "--json")[0])
    assert facts["dtype"] == "bfloat16"
    weights = tiny_folder() / "model.safetensors"
    assert facts["bytes"] == pytest.approx(weights.stat().st_size / 2, rel=0.05)  # the file is in float32
    assert "no model" in typed("load", "no-such", code=1)[1]


def test_refusals_are_one_sentence(out: Path, typed: Typed) -> None:
    for arguments in (("submit", "--out", str(out), "fly"), ("jobs", "cancel", "x", "--out", str(out))):
        _, said = typed(*arguments, code=1)
        assert said.startswith("headscope: There is no ")
        assert said.count("\n") == 1
    assert not out.parent.joinpath("jobs").exists()


def test_an_empty_queue_says_how_to_fill_it_and_a_damaged_job_is_named(out: Path, typed: Typed) -> None:
    assert "headscope submit" in typed("jobs", "--out", str(out))[0]
    (out.parent / "jobs" / "odd").mkdir(parents=True)
    assert "odd is not a job" in typed("jobs", "--out", str(out))[1]
