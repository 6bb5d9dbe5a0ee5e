"""The main job on the default model, from the command to the dashboard: real weights, few and short prompts.

Where only the sharing of the work counts, a tiny random model does it.

pytest tests/test_main_job.py
"""

import copy
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analysis import ablation
from analysis.cli import main
from analysis.interventions import MEANINGS
from analysis.needles import build, grid, triples
from analysis.runs import Run, find_run
from probes.capture import mean_queries
from probes.generation import greedy, prefill
from probes.heads import parse_head
from probes.subject import Subject
from probes.tap import Tap

pytestmark = pytest.mark.model
ROOT = Path(__file__).resolve().parents[1]
LENGTH = 192
ASKED = ("--lengths", str(LENGTH), "--depths", "0.2,0.8", "--new-tokens", "24", "--device", "cpu")
RESULTS = ("cases.jsonl", "heads.parquet", "summary.json", "head_scores.json")


def finished(folder: Path, *arguments: str) -> Run:
    main_with([*arguments, "--out", str(folder)])
    command = "ablation" if arguments[0] == "ablate" else arguments[0]
    return find_run("last", folder, command=command)


def main_with(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def scored(folder: Path) -> Run:
    """A whole retrieval run of six cases."""
    return finished(folder, "retrieval", *ASKED)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What asks for four cases of a user's own, in the user's own text; their answers are short."""
    folder = tmp_path_factory.mktemp("own")
    text, cases = folder / "harbour.txt", folder / "own.jsonl"
    text.write_text("The harbour was quiet that morning. Boats lay side by side. Nobody spoke a word. " * 40)
    rows = [
        {"question": f"What is the {what} called?", "needle": f"The {what} is called the {name}.",
         "answer": f"the {name}", "haystack": str(text)}
        for what, name in (("ferry to Lund", "Grey Heron"), ("inn on the quay", "Brass Lantern"))
    ]  # fmt: skip
    cases.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--cases", str(cases), *ASKED)


@pytest.fixture(scope="module")
def whole(own: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A retrieval run of them that nothing stopped."""
    return finished(tmp_path_factory.mktemp("whole"), "retrieval", *own)


@pytest.fixture(scope="module")
def silenced(folder: Path, scored: Run) -> Run:
    """Its ten strongest heads silenced, on six cases of other needles and other texts."""
    return finished(folder, "ablate", *ASKED, "--heads-from", scored.id, "--top", "10", "--meaning", "query_mean",
                    "--controls", "2")  # fmt: skip


def test_few_heads_fetch_the_fact_and_the_table_holds_every_head(scored: Run) -> None:
    summary, frame = scored.summary(), scored.heads()
    assert summary["accuracy"]["n"] == 6
    assert summary["accuracy"]["value"] > 0.5
    assert summary["top"][0]["score"] > 0.4
    assert 0 < summary["share_at_threshold"] < 0.2
    assert len(frame) == 270 * frame["metric"].nunique()
    raw = json.loads((scored.path / "head_scores.json").read_text())
    best = parse_head(summary["top"][0]["head"])
    assert sum(raw[best.key]) / len(raw[best.key]) == pytest.approx(summary["top"][0]["score"], abs=1e-5)


def test_silencing_the_strongest_heads_loses_the_fact_and_silencing_random_ones_does_not(
    silenced: Run, scored: Run
) -> None:
    [row] = silenced.summary()["curve"]
    assert row["difference"]["low"] > 0
    assert row["ablated"]["value"] < 0.5 < row["control"]["value"]
    sets = {name: {parse_head(head) for head in heads} for name, heads in silenced.summary()["sets"].items()}
    top = sets.pop("query_mean/decode/top/10")
    assert [str(head) for head in sorted(top)] == sorted(
        (head["head"] for head in scored.summary()["top"]), key=parse_head
    )
    assert len(sets) == 2
    assert all(not control & top for control in sets.values())


def test_the_judging_cases_share_no_needle_and_no_text_with_those_that_chose(scored: Run, silenced: Run) -> None:
    chose, judged = scored.cases(), silenced.cases()
    for what in ("triple", "question", "haystack"):
        assert not {case[what] for case in chose} & {case[what] for case in judged}


def begun(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "analysis.cli", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def assert_same_results(folder: Path, whole: Run) -> None:
    [resumed] = [Run(path) for path in folder.iterdir()]
    assert resumed.finished
    for name in RESULTS:
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_a_run_killed_in_the_middle_resumes_and_ends_with_the_same_bytes(
    whole: Run, own: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = ["retrieval", *own, "--out", str(tmp_path)]
    work = begun(arguments)
    deadline = time.monotonic() + 300
    while not (lines := [line for path in tmp_path.glob("*/cases.jsonl") for line in path.read_text().splitlines()]):
        assert work.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    work.send_signal(signal.SIGKILL)
    work.wait(timeout=30)
    assert 1 <= len(lines) < 4
    [path] = tmp_path.iterdir()
    with (path / "cases.jsonl").open("a") as file:
        file.write('{"case": "half a li')  # as a kill in the middle of a write leaves it
    main_with([*arguments, "--resume", "last"])
    assert_same_results(tmp_path, whole)


@pytest.mark.soak
def test_a_run_killed_again_and_again_at_any_moment_ends_with_the_same_bytes(scored: Run, tmp_path: Path) -> None:
    arguments = ["retrieval", *ASKED, "--out", str(tmp_path), "--resume", "last"]
    chance = random.Random(0)
    kills = 0
    while True:
        work = begun(arguments)
        try:
            assert work.wait(timeout=chance.uniform(3, 15)) == 0
            break
        except subprocess.TimeoutExpired:
            work.send_signal(signal.SIGKILL)
            work.wait(timeout=30)
            kills += 1
    assert kills >= 2
    assert_same_results(tmp_path, scored)


def test_two_workers_give_the_same_cases_in_the_same_order(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    arguments = ("retrieval", "--model", str(tiny_folder()), *ASKED)
    alone = finished(tmp_path / "alone", *arguments)
    shared = finished(tmp_path / "shared", *arguments, "--workers", "2")
    assert len({case["response"] for case in alone.cases()}) == 6
    assert [case["case"] for case in shared.cases()] == [case["case"] for case in alone.cases()]
    assert [case["response"] for case in shared.cases()] == [case["response"] for case in alone.cases()]


def test_continuations_decoded_side_by_side_are_those_decoded_one_by_one(smollm: Subject) -> None:
    case = grid(triples("judge"), [LENGTH], [0.5], seed=0)[0]
    prompt = build(smollm, case)
    means = mean_queries(smollm, [prompt])
    heads = tuple(parse_head(name) for name in ("L17H3", "L17H4", "L18H6", "L18H7", "L23H2"))
    tests = [ablation.Condition(meaning, heads, meaning, "decode") for meaning in MEANINGS]
    together = ablation.examine(smollm, case, tests=tests, means=means, new_tokens=12)
    cache = prefill(smollm, prompt.ids)
    for test in tests:
        plan = test.plan(smollm.anatomy, means, smollm.device)
        with Tap(smollm, plan=plan):
            alone = greedy(smollm, copy.deepcopy(cache), int(prompt.ids[-1]), 12)
        said = smollm.tokenizer.decode(alone, skip_special_tokens=True).strip()
        assert together["conditions"][test.name]["response"] == said
    assert any(told["response"] != together["baseline"]["response"] for told in together["conditions"].values())


def test_a_users_own_cases_and_text_are_taken(whole: Run, own: tuple[str, ...]) -> None:
    assert [case["haystack"] for case in whole.cases()] == [str(Path(own[1]).with_name("harbour.txt"))] * 4
    for name in ("Grey Heron", "Brass Lantern"):
        assert any(name in case["response"] for case in whole.cases())


def opened(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **address: str) -> Any:
    monkeypatch.setenv("HEADSCOPE_RUNS", str(folder))
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    for name, value in address.items():
        app.query_params[name] = value
    app.switch_page(f"views/{page}.py")
    app.run()
    assert not app.exception
    assert not app.error
    return app


def test_every_page_of_the_dashboard_shows_the_real_runs(
    folder: Path, scored: Run, silenced: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = scored.summary()["top"][0]["head"]
    assert opened("heads", folder, monkeypatch, run=scored.id).dataframe[0].value["name"].iloc[0] == best
    assert opened("head", folder, monkeypatch, run=scored.id, head=best).title[0].value == f"Head {best}"
    needles = opened("needles", folder, monkeypatch, run=scored.id)
    assert re.fullmatch(r"\d of 6 failed", needles.subheader[0].value)
    curve = opened("ablation", folder, monkeypatch, run=silenced.id).dataframe[0].value
    assert list(curve["K"]) == [10]
    assert len(opened("runs", folder, monkeypatch).dataframe[0].value) >= 2
