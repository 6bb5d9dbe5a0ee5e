"""Jobs in the dashboard: asked for, watched, stopped, gone on with; and what survives a kill of every part of it.

pytest tests/views/test_jobs_page.py
"""

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from streamlit.testing.v1 import AppTest

from analysis import cli
from analysis.jobs.folder import jobs, submit
from analysis.jobs.job import Facts, Job, write_facts
from analysis.jobs.lock import held, hold, jobs_folder
from analysis.runs import list_runs, write_json
from tests.views.page_words import said
from views import job_card, jobs_line, reading

ROOT = Path(__file__).resolve().parents[2]
LINE = "retrieval --grid quick"
HOSTILE = "<script>alert(1)</script> ![x](http://example.org/x.png) `a` :red[b] \u202egnp"
CASES = 40  # enough for a kill in the middle
PATIENCE = 60_000  # milliseconds, for a worker to read a model on a busy machine
Open = Callable[..., AppTest]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs that is not there yet; no worker is started for its jobs."""
    monkeypatch.delenv("HEADSCOPE_JOBS", raising=False)
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(job_card, "ensure_worker", lambda out: False)
    monkeypatch.setattr(jobs_line, "replace_dead_worker", lambda out: False)
    return tmp_path / "runs"


@pytest.fixture
def open_page(out: Path) -> Open:
    def opened(page: str = "jobs", **address: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        for name, value in address.items():
            app.query_params[name] = value
        app.switch_page(f"views/{page}.py")
        return sound(app.run())

    return opened


def sound(app: AppTest) -> AppTest:
    assert not app.exception, [error.value for error in app.exception]
    return app


def press(app: AppTest, label: str) -> AppTest:
    return sound(next(button for button in app.button if button.label == label).click().run())


def end(job: Job, **facts: Any) -> None:
    write_facts(job.path, replace(job.facts, started=1.0, ended=time.time(), **facts))


def test_with_no_job_the_page_says_where_to_begin(open_page: Open) -> None:
    words = said(open_page())
    assert "Nothing waits. Type a command below" in words
    assert "No job has ended yet." in words
    assert "None. The next job starts one." in words


def test_a_typed_line_waits_with_its_place_and_can_be_cancelled(open_page: Open, out: Path) -> None:
    app = open_page()
    for line in (f"headscope {LINE} --seed 1", "sinks"):
        app.text_input[0].input(line)
        press(app, "Run")
    assert [job.spec.command for job in jobs(out)[0]] == [f"headscope {LINE} --seed 1", "headscope sinks"]
    assert app.text_input[0].value == ""
    assert "1 before it" not in said(app)  # there is no worker that could take the first
    with hold(jobs_folder(out)):
        assert "1 before it" in said(sound(app.run()))
    press(app, "Cancel")
    assert [job.state for job in jobs(out)[0]] == ["cancelled", "queued"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("fly", "no verb 'fly'"), ("retrieval 'x", "can't be read"), ("ui", "can't be a job"), ("", "no verb ''")],
)
def test_a_line_that_cannot_be_run_is_refused_in_one_sentence_and_stays_to_be_mended(
    open_page: Open, out: Path, line: str, sentence: str
) -> None:
    app = open_page()
    app.text_input[0].input(line)
    press(app, "Run")
    assert [sentence in str(error.value) for error in app.error] == [True]
    assert app.text_input[0].value == line
    assert not jobs_folder(out).exists()


def test_a_link_can_bring_a_line_to_be_run(open_page: Open, out: Path) -> None:
    app = open_page(line=LINE)
    assert jobs(out)[0] == []  # a link alone runs nothing
    press(app, "Run")
    assert [shlex.join(job.spec.arguments) for job in jobs(out)[0]] == [LINE]


def test_a_step_of_home_runs_at_a_press_and_is_not_asked_twice(open_page: Open, out: Path) -> None:
    app = open_page("home")
    buttons = [button.label for button in app.button].count("Run")
    press(app, "Run")
    assert [job.spec.command for job in jobs(out)[0]] == ["headscope retrieval --model smollm2-135m"]
    assert [button.label for button in app.button].count("Run") == buttons - 1
    assert "Waiting" in said(app)
    assert [button.label for button in open_page("home").button].count("Run") == buttons - 1  # in another browser too


def test_the_sidebar_of_every_page_says_how_far_the_job_is(open_page: Open, out: Path) -> None:
    assert not open_page("heads").sidebar.get("page_link")
    job, _ = submit(shlex.split(LINE), out), submit(["sinks"], out)
    with hold(jobs_folder(out)):
        write_facts(job.path, replace(job.facts, state="running", started=time.time() - 60))
        write_steps(job, (0, time.time() - 40), (10, time.time()))
        app = open_page("heads")
        assert [link.proto.label for link in app.sidebar.get("page_link")] == ["retrieval\\: 10 of 40, 2 min left"]
        assert "1 more waits" in [caption.value for caption in app.sidebar.caption]


def write_steps(job: Job, *steps: tuple[int, float]) -> None:
    lines = [{"title": "scoring heads", "done": done, "total": 40, "time": when} for done, when in steps]
    (job.path / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_has_ended_is_named_in_the_sidebar_of_those_who_saw_it_at_work(open_page: Open, out: Path) -> None:
    job = submit(shlex.split(LINE), out)
    app = open_page("heads")
    run = copied_run(out)
    end(job, state="done", run=run)
    assert "retrieval\\: done" in [link.proto.label for link in sound(app.run()).sidebar.get("page_link")]
    assert "retrieval\\: done" not in [link.proto.label for link in open_page("heads").sidebar.get("page_link")]


def copied_run(out: Path, state: str = "finished") -> str:
    """A run in the folder: the shipped example, in another state where asked."""
    (example,) = list_runs(reading.EXAMPLES)[0]
    shutil.copytree(example.path, out / example.id)
    write_json(out / example.id / "manifest.json", {**example.manifest, "state": state})
    return example.id


def test_a_finished_job_leads_to_its_run(open_page: Open, out: Path) -> None:
    job, run = submit(shlex.split(LINE), out), copied_run(out)
    end(job, state="done", run=run)
    links = [link.proto for link in open_page().main.get("page_link")]
    assert "Open Heads" in [link.label for link in links]
    assert all(run in link.query_string for link in links)


def test_a_failed_job_says_its_sentence_and_hostile_words_are_shown_as_they_are(open_page: Open, out: Path) -> None:
    job = submit(["retrieval", "--model", HOSTILE], out)
    (job.path / "log.txt").write_text(HOSTILE)
    end(job, state="failed", sentence=f"There is no model {HOSTILE}.")
    app = open_page(job=job.id)
    words = next(text.value for text in app.markdown if "Failed" in text.value)
    assert "\\<script\\>" in words
    assert "!\\[x\\]" in words
    assert "\\:red\\[b\\]" in words
    log = app.code[-1].value
    assert log.startswith("<script>alert(1)</script> ![x](http://example.org/x.png)")  # as text, in a block of code
    assert "\u202e" not in log
    press(app, "Submit again")
    assert [each.spec.arguments for each in jobs(out)[0]] == [job.spec.arguments] * 2


def test_a_job_that_left_its_run_unfinished_goes_on_where_it_was_asked(open_page: Open, out: Path) -> None:
    job = submit(shlex.split(LINE), out, asked_in="/elsewhere")
    run = copied_run(out, state="stopped")
    end(job, state="cancelled", run=run)
    press(open_page(), "Go on")
    again = jobs(out)[0][-1]
    assert again.spec.arguments == ("retrieval", "--resume", run, "--grid", "quick")
    assert again.spec.folder == "/elsewhere"


def test_nothing_is_gone_on_with_where_the_run_is_whole_or_gone(open_page: Open, out: Path) -> None:
    job = submit(shlex.split(LINE), out)
    end(job, state="failed", run="20260101T000000Z-retrieval-gone")
    assert "Go on" not in [button.label for button in open_page().button]
    end(job, state="failed", run=copied_run(out))
    assert "Go on" not in [button.label for button in open_page().button]


def test_the_model_in_memory_is_named_with_its_size_and_can_be_let_go(open_page: Open, out: Path) -> None:
    folder = jobs_folder(out)
    with hold(folder):
        kept = {"model": "my *model*", "device": "cpu", "dtype": "float32", "bytes": 538_000_000, "since": time.time()}
        write_json(folder / "slot.json", kept)
        app = open_page()
        assert "my \\*model\\* · float32 on cpu · 0.54 GB" in said(app)
        press(app, "Unload")
        assert (folder / "unload").exists()


def test_a_model_is_loaded_by_a_job(open_page: Open, out: Path) -> None:
    app = open_page()
    app.selectbox(key="load-model").set_value("smollm2-135m")
    app.selectbox(key="load-dtype").set_value("bfloat16")
    press(app, "Load")
    assert [job.spec.command for job in jobs(out)[0]] == ["headscope load smollm2-135m --dtype bfloat16"]


def test_a_damaged_job_is_one_sentence_beside_the_others(open_page: Open, out: Path) -> None:
    damaged, sound_one = submit(["sinks"], out), submit(["heads"], out)
    (damaged.path / "state.json").write_text("{")
    app = open_page()
    assert [damaged.id in str(warning.value) for warning in app.warning] == [True]
    assert sound_one.spec.command in said(app, "code")


def test_a_worker_that_died_is_replaced_and_one_that_was_stopped_by_hand_is_not(
    open_page: Open, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from analysis.jobs import serving

    started: list[Path] = []
    monkeypatch.setattr(serving, "ensure_worker", lambda out: bool(started.append(out)) or True)
    monkeypatch.setattr(jobs_line, "replace_dead_worker", serving.replace_dead_worker)
    monkeypatch.setattr(jobs_line, "_started", -1000.0)
    job = submit(shlex.split(LINE), out)
    write_facts(job.path, Facts(state="interrupted", attempts=0))
    assert "its worker was stopped; start one" in said(open_page())
    assert started == []
    write_facts(job.path, Facts(state="running", attempts=1))
    assert "another one starts and goes on where it was" in said(open_page())
    open_page("home")
    assert started == [out]  # once, however many look


# In a real browser, with a real worker.


@pytest.fixture(scope="module")
def line(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """Gives a retrieval of so many cases on a tiny model, as it is typed."""
    case = {"question": "Where is the cat?", "needle": "The cat is on the mat.", "answer": "on the mat"}
    cases = tmp_path_factory.mktemp("cases") / "cat.jsonl"
    cases.write_text(json.dumps(case | {"haystack": "alice"}) + "\n")

    def typed(count: int) -> str:
        depths = ",".join(str(round(place / count, 4)) for place in range(count))
        return (
            f"retrieval --model {tiny_folder()} --device cpu --cases {cases} --lengths 128 --depths {depths} "
            "--new-tokens 1"
        )

    return typed


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of runs of its own, whose worker ends with the test."""
    monkeypatch.delenv("HEADSCOPE_JOBS", raising=False)
    out = tmp_path / "runs"
    out.mkdir()
    yield out
    for process in psutil.process_iter(["cmdline"]):
        if str(out) in (process.info["cmdline"] or []):
            process.kill()


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


@pytest.mark.browser
def test_a_job_survives_its_worker_the_browser_and_the_server_and_ends_with_the_same_bytes(
    alone: Path,
    line: Callable[[int], str],
    browser: Any,
    dashboard: Callable[[Path], AbstractContextManager[str]],
) -> None:
    with dashboard(alone) as url:
        page = browser.new_page()
        page.goto(f"{url}/jobs")
        page.get_by_role("textbox", name="headscope ...").fill(line(CASES), timeout=PATIENCE)
        page.get_by_test_id("stFormSubmitButton").get_by_role("button").click()
        (job,) = until(lambda: jobs(alone)[0])
        cases = alone / until(lambda: job.facts.run) / "cases.jsonl"
        until(lambda: cases.exists() and cases.read_bytes().count(b"\n") >= 2)
        assert job.facts.pid is not None
        os.kill(job.facts.pid, signal.SIGKILL)
        finished = cases.read_bytes()
        page.get_by_text("Interrupted: its worker ended in the middle of it").wait_for(timeout=PATIENCE)
        until(lambda: held(jobs_folder(alone)))  # the page has started another
        page.close()
    assert held(jobs_folder(alone))  # the worker lives without the server that started it
    assert job.state != "done"
    with dashboard(alone) as url:
        page = browser.new_page()
        page.goto(f"{url}/jobs")
        page.get_by_role("link", name="Open Heads").wait_for(timeout=PATIENCE)
        page.close()
    assert (job.state, job.facts.attempts) == ("done", 2)
    (run,), _ = list_runs(alone)
    assert cases.read_bytes().startswith(finished[: finished.rfind(b"\n") + 1])
    undisturbed = alone.parent / "undisturbed"
    with pytest.raises(SystemExit):
        cli.main([*shlex.split(line(CASES)), "--out", str(undisturbed)])
    (whole,), _ = list_runs(undisturbed)
    assert len(whole.cases()) > finished.count(b"\n")
    for name in ("cases.jsonl", "summary.json", "head_scores.json", "heads.parquet"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
