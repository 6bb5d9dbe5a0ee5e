"""A folder of runs, the jobs beside it, and a worker within the test's own process."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from analysis import study
from analysis.jobs.serving import serve
from probes.subject import load

Line = Callable[..., list[str]]
CAT = {
    "question": "Where is the cat?",
    "needle": "The cat is on the mat.",
    "answer": "on the mat",
    "haystack": "alice",
}


@pytest.fixture(scope="module", autouse=True)
def _read_once() -> Iterator[None]:
    """Models are read from disk once for all of these tests: most of their time would go into a tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "load", cache(load))
        yield


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HEADSCOPE_JOBS", raising=False)
    monkeypatch.delenv("HEADSCOPE_RUNS", raising=False)
    return tmp_path / "runs"


@pytest.fixture
def served(out: Path) -> Callable[[], None]:
    """Runs everything that waits."""
    return lambda: serve(out, idle=0)


@pytest.fixture
def line(tiny_folder: Callable[..., Path], tmp_path: Path) -> Line:
    """Gives a retrieval of so many cases on a tiny model, on the CPU."""
    cases = tmp_path / "cat.jsonl"
    cases.write_text(json.dumps(CAT) + "\n")

    def written(count: int, *more: str) -> list[str]:
        depths = ",".join(str(round(place / count, 4)) for place in range(count))
        return ["retrieval", "--model", str(tiny_folder()), "--device", "cpu", "--cases", str(cases),
                "--lengths", "128", "--depths", depths, "--new-tokens", "1", *more]  # fmt: skip

    return written
