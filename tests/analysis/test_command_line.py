"""Whatever goes wrong on the command line is one sentence, and nothing is left behind."""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer

from analysis import cli, commands, study
from analysis.needles import triples
from analysis.runs import FORMAT, list_runs, write_json
from probes import memory
from probes.sources import SHORT_NAMES, find_source
from probes.subject import Subject, load

ROOT = Path(__file__).resolve().parents[2]
RETRIEVAL, ABLATION = "20260101T000000Z-retrieval-aaaaaaaa", "20260102T000000Z-ablation-bbbbbbbb"
SMALL = ("--lengths", "512", "--depths", "0.5")
CASE = {
    "question": "Where is the cat?",
    "needle": "The cat is on the mat.",
    "answer": "on the mat",
    "haystack": "alice",
}
VERBS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
Refused = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def _dequantised() -> None:
    """The first load of the default model on a machine shows its progress, which is no part of a refusal."""
    find_source("smollm2-135m")


@pytest.fixture(scope="module", autouse=True)
def _loaded_once() -> Iterator[None]:
    """A model that loads is loaded for all of these tests; one that doesn't is refused each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "load", cache(load))
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder given by --out; it does not exist yet."""
    return tmp_path / "runs"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> Refused:
    """Runs the command line, expects a refusal, and returns its sentence."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(*arguments: object, code: int = 1) -> str:
        before = contents(out)
        with pytest.raises(SystemExit) as stopped:
            cli.main([*map(str, arguments), "--out", str(out)])
        said = capsys.readouterr().err
        assert stopped.value.code == code
        assert said.startswith("headscope: ")
        assert said.count("\n") == 1
        assert "Traceback" not in said
        assert contents(out) == before
        return said

    return run


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line, expects it to succeed, and returns what it printed, lines joined."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, arguments)])
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return " ".join(said.out.replace("│", " ").split())

    return run


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def write_cases(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@cache
def default_model_hash() -> str | None:
    return find_source("smollm2-135m").sha256()


def save_run(out: Path, name: str, *, layers: int = 30, heads: int = 9, **facts: Any) -> Path:
    """A finished run, with heads.parquet where it is one of retrieval: head (0, 0) scores most, and so on down."""
    command = name.split("-")[1]
    folder = out / name
    folder.mkdir(parents=True)
    manifest = {
        "format": FORMAT,
        "id": name,
        "command": command,
        "argv": f"headscope {command}",
        "request": {},
        "request_hash": name,
        "state": "finished",
        "seconds": 1.0,
        "model": {"name": "smollm2-135m", "dtype": "float32", "device": "cpu", "sha256": default_model_hash()},
    }
    write_json(folder / "manifest.json", manifest | facts)
    if command == "retrieval":
        rows = [
            (i // heads, i % heads, metric, 0.5 / (i + 1))
            for metric in ("retrieval_score", "needle_mass")
            for i in range(layers * heads)
        ]
        frame = pd.DataFrame(rows, columns=["layer", "head", "metric", "value"])
        frame.assign(low=0.0, high=1.0, n=4).to_parquet(folder / "heads.parquet", index=False)
    return folder


@pytest.mark.parametrize("verb", ["retrieval", "ablate"])
@pytest.mark.parametrize("name", ["no-such-model", "./nothing-here", "missing.gguf"])
def test_an_unknown_model_is_refused(refused: Refused, verb: str, name: str) -> None:
    heads = ["--heads", "L0H0"] if verb == "ablate" else []
    assert "There is no model" in refused(verb, "--model", name, *SMALL, *heads)


def test_the_beginning_of_a_gguf_is_refused(refused: Refused, tmp_path: Path) -> None:
    short = SHORT_NAMES["smollm2-135m"]
    spec = importlib.util.find_spec(short.package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the wheel {short.wheel} is not installed")
    whole = Path(spec.submodule_search_locations[0]) / short.file
    with whole.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(60_000))
    assert "damaged or incomplete" in refused("retrieval", "--model", tmp_path / "cut.gguf", *SMALL)


def test_a_file_that_is_no_gguf_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("these are notes")
    assert "is not a GGUF file" in refused("retrieval", "--model", tmp_path / "notes.gguf", *SMALL)


def test_a_damaged_model_folder_is_refused(refused: Refused, tmp_path: Path, tiny: Callable[..., Subject]) -> None:
    tiny("llama").model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": ')
    assert "damaged or incomplete" in refused("retrieval", "--model", tmp_path / "model", *SMALL)


@pytest.mark.model
def test_a_prompt_beyond_the_window_is_refused(refused: Refused) -> None:
    assert "beyond the 8192 positions" in refused("retrieval", "--lengths", "512,9000", "--depths", "0.5")


@pytest.mark.model
@pytest.mark.parametrize("place", [0, 1])
def test_a_needle_longer_than_the_prompt_is_refused_before_any_case(
    refused: Refused, tmp_path: Path, place: int
) -> None:
    rows = [CASE, CASE]
    rows[place] = CASE | {"needle": CASE["needle"] + " It is a very fat cat." * 50}
    cases = write_cases(tmp_path / "cases.jsonl", *rows)
    said = refused("retrieval", "--cases", cases, "--lengths", "256", "--depths", "0.5", "--new-tokens", "1")
    assert "no room" in said
    assert f"'case{place + 1}'" in said


@pytest.mark.model
def test_heads_the_model_does_not_have_are_refused(refused: Refused) -> None:
    said = refused("ablate", "--heads", "L0H0,L99H0", *SMALL)
    assert "L99H0 does not exist" in said
    assert "0 to 29" in said


@pytest.mark.model
@pytest.mark.parametrize(("top", "says"), [("5,500", "has 270 heads"), ("200", "choose a smaller K")])
def test_more_heads_than_there_are_or_than_leave_a_control_are_refused(
    refused: Refused, out: Path, top: str, says: str
) -> None:
    save_run(out, RETRIEVAL)
    assert says in refused("ablate", "--top", top, *SMALL)


@pytest.mark.model
def test_a_run_that_ranked_the_heads_of_another_model_is_refused(refused: Refused, out: Path) -> None:
    save_run(out, RETRIEVAL, layers=2, heads=4)
    assert "another model" in refused("ablate", "--top", "1", *SMALL)


@pytest.mark.model
def test_a_run_of_other_weights_of_the_same_shape_is_refused(refused: Refused, out: Path) -> None:
    save_run(out, RETRIEVAL, model={"name": "smollm2-135m", "dtype": "float32", "sha256": "0" * 64})
    assert "another model" in refused("ablate", "--top", "1", *SMALL)


@pytest.mark.model
def test_cases_that_chose_the_heads_may_not_judge_them(refused: Refused, out: Path) -> None:
    judge = triples("judge")[0]
    case = {"case": "mine", "question": judge.question, "answer": judge.answer}
    write_cases(save_run(out, RETRIEVAL) / "cases.jsonl", case)
    assert "also chose the heads" in refused("ablate", "--top", "1", *SMALL)


@pytest.mark.model
def test_a_run_in_which_no_case_was_answered_ranks_no_head(refused: Refused, out: Path) -> None:
    save_run(out, RETRIEVAL, layers=0)
    assert "ranks no head" in refused("ablate", "--top", "1", *SMALL)


@pytest.mark.model
@pytest.mark.parametrize("heads", ["vision.L3H2", ","])
def test_heads_of_a_vision_tower_that_is_absent_and_no_heads_at_all_are_refused(refused: Refused, heads: str) -> None:
    assert "--top" not in refused("ablate", "--heads", heads, *SMALL, "--dry-run")


@pytest.mark.parametrize("heads", ["L1", "seventeen", "L1H1;L2H2"])
@pytest.mark.model
def test_what_is_no_name_of_a_head_is_refused(refused: Refused, heads: str) -> None:
    assert "write L17H4" in refused("ablate", "--heads", heads, *SMALL)


def test_an_empty_haystack_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    assert "is empty" in refused("retrieval", "--haystack", tmp_path / "empty.txt")


def test_a_haystack_that_is_no_text_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(bytes(range(256)))
    assert "not a readable UTF-8 text" in refused("retrieval", "--haystack", tmp_path / "picture.png")
    assert "There is no haystack" in refused("retrieval", "--haystack", "no-such-text")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "holds no cases"),
        ([{"question": "Where?"}], "lacks needle and answer and haystack"),
        ([CASE | {"answer": "in the sea"}], "not part of its needle"),
        ([CASE | {"key": "a"}, CASE | {"key": "a"}], "same key"),
        (["just words"], "not JSONL"),
        ([CASE | {"answer": 5}], "answer"),
    ],
)
def test_cases_that_are_not_right_are_refused(refused: Refused, tmp_path: Path, rows: list[Any], says: str) -> None:
    said = refused("retrieval", "--cases", write_cases(tmp_path / "cases.jsonl", *rows), *SMALL)
    assert "should not have happened" not in said
    assert says in said


def test_a_cases_file_that_is_absent_or_no_jsonl_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "can't be read" in refused("retrieval", "--cases", tmp_path / "absent.jsonl")
    (tmp_path / "words.jsonl").write_text("question: where?\n")
    assert "not JSONL" in refused("retrieval", "--cases", tmp_path / "words.jsonl")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--depths", "1.5"], "outside 0"),
        (["--depths", "-0.1"], "outside 0"),
        (["--depths", "nan"], "--depths takes numbers"),
        (["--depths", "middle"], "--depths takes numbers"),
        (["--depths", ","], "--depths is empty"),
        (["--lengths", "abc"], "--lengths takes numbers"),
        (["--lengths", "512;1024"], "--lengths takes numbers"),
        (["--lengths", "512.5"], "--lengths takes whole numbers"),
        (["--lengths", "0"], "--lengths takes whole numbers"),
        (["--lengths", "nan"], "--lengths takes"),
        (["--lengths", "inf"], "--lengths takes"),
        (["--grid", "enormous"], "choose quick, standard, full"),
        (["--dtype", "float12"], "not a dtype"),
        (["--device", "toaster"], "not a device"),
    ],
)
def test_options_that_make_no_sense_are_refused(refused: Refused, options: list[str], says: str) -> None:
    said = refused("retrieval", *options)
    assert says in said
    assert "should not have happened" not in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--meaning", "query_one"], "query_zero, query_mean, output_zero"),
        (["--meaning", ","], "--meaning is empty"),
        (["--phase", "encode"], "decode"),
    ],
)
def test_meanings_and_phases_that_are_none_are_refused(refused: Refused, options: list[str], says: str) -> None:
    assert says in refused("ablate", "--heads", "L0H0", *SMALL, *options)


@pytest.mark.model
def test_a_number_of_heads_that_is_a_word_is_refused(refused: Refused, out: Path) -> None:
    save_run(out, RETRIEVAL)
    assert "--top takes numbers" in refused("ablate", "--top", "all", *SMALL)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ('{"format": 1, "comm', "half written"),
        (json.dumps({"format": FORMAT + 1}), "upgrade headscope"),
        (None, "no manifest.json"),
    ],
)
@pytest.mark.parametrize("arguments", [["runs", RETRIEVAL], ["ablate", "--heads-from", RETRIEVAL]])
def test_a_run_that_can_not_be_read_is_refused(
    refused: Refused, out: Path, manifest: str | None, says: str, arguments: list[str]
) -> None:
    (out / RETRIEVAL).mkdir(parents=True)
    if manifest is not None:
        (out / RETRIEVAL / "manifest.json").write_text(manifest)
    assert says in refused(*arguments)


def test_a_run_that_is_not_there_is_refused(refused: Refused) -> None:
    assert "no run named nothing" in refused("runs", "nothing")
    assert "start with headscope retrieval" in refused("ablate", "--heads-from", "last")


def test_a_run_that_ranked_no_heads_is_refused(refused: Refused, out: Path) -> None:
    save_run(out, ABLATION)
    assert "is not a retrieval run" in refused("ablate", "--heads-from", ABLATION)


@pytest.mark.model
def test_what_does_not_fit_into_memory_is_refused_at_once(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "load", load)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    assert "Loading smollm2-135m needs about" in refused("retrieval", *SMALL)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2_000_000_000)
    said = refused("retrieval", "--lengths", "4000", "--depths", "0.5", "--workers", "50")
    assert f"{len(triples('detect'))} cases of up to 4000 tokens needs about" in said
    assert "2.0 GB are free" in said


@pytest.mark.model
def test_ctrl_c_keeps_the_run_and_only_the_same_request_goes_on_with_it(
    refused: Refused, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "work_through", interrupt)
    for resume in ([], ["--resume", "last"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["retrieval", *SMALL, *resume, "--out", str(out)])
        assert stopped.value.code == 130
        capsys.readouterr()
        (run,), problems = list_runs(out)
        assert not problems
        assert run.manifest["state"] == "stopped"
    said = refused("retrieval", "--lengths", "512", "--depths", "1", "--seed", "1", "--resume", run.id)
    assert "case_ids, depths, seed differs" in said


def test_ctrl_c_says_how_to_go_on(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "retrieval", raising(KeyboardInterrupt()))
    assert "--resume" in refused("retrieval", code=130)


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("message", ["by zero", "by zero\nin two lines", ""])
def test_what_nobody_foresaw_is_one_sentence_and_its_traceback_goes_to_a_file(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr(commands, "retrieval", raising(ZeroDivisionError(message)))
    said = refused("retrieval")
    assert "ZeroDivisionError" in said
    found = re.search(r"details are in (\S+)\.$", said)
    assert found
    log = Path(found[1]).read_text()
    assert "Traceback" in log
    assert "in retrieval" in log


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee the documentation."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_one_sentence(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(commands, "retrieval", raising(error))
    assert "the memory ran out: choose shorter lengths" in refused("retrieval")


@pytest.mark.model
@pytest.mark.parametrize("verb", ["retrieval", "ablate"])
def test_a_dry_run_writes_nothing_and_says_how_many_cases(
    printed: Callable[..., str], tmp_path: Path, out: Path, verb: str
) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", CASE)
    heads = ["--heads", "L17H4"] if verb == "ablate" else []
    said = printed(
        verb, "--cases", cases, "--lengths", "256,400", "--depths", "0,0.5,1", *heads, "--dry-run", "--out", out
    )
    assert "6 cases of 256 to 400 tokens on smollm2-135m" in said
    assert "Nothing was run" in said
    assert not out.exists()


def test_answers_as_json_are_json_and_nothing_else(printed: Callable[..., str], out: Path) -> None:
    (default,) = (row["name"] for row in json.loads(printed("models", "--json")) if row["default"])
    assert default == "smollm2-135m"
    assert json.loads(printed("runs", "--json", "--out", out)) == []
    save_run(out, RETRIEVAL)
    (out / ABLATION).mkdir()
    assert [run["id"] for run in json.loads(printed("runs", "--json", "--out", out))] == [RETRIEVAL]
    findings = {row["what"]: row for row in json.loads(printed("doctor", "--json"))}
    assert findings["torch"] == {"what": "torch", "ok": True, "found": version("torch"), "advice": "", "needed": True}
    assert all(row["ok"] or row["advice"] for row in findings.values())


def test_runs_are_listed_with_a_sentence_for_each_that_can_not_be_read(printed: Callable[..., str], out: Path) -> None:
    assert "start with headscope demo" in printed("runs", "--out", out)
    save_run(out, RETRIEVAL, total_cases=4)
    (out / ABLATION).mkdir()
    said = printed("runs", "--out", out)
    assert "finished" in said
    assert "0/4" in said
    assert "no manifest.json" in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(printed: Callable[..., str], verb: str) -> None:
    said = printed(verb, "--help")
    assert f"Usage: headscope {verb}" in said or f"{verb} [OPTIONS]" in said
    if verb in ("retrieval", "ablate"):
        assert "Examples" in said
        assert f"headscope {verb} --" in said.split("Options")[0]


def test_the_installed_command_and_the_modules_run_by_themselves() -> None:
    try:
        version("headscope")
    except PackageNotFoundError:
        pytest.skip("headscope is not installed here")
    asked = {
        "smollm2-135m": [str(Path(sys.executable).with_name("headscope")), "models"],
        "Which heads fetch facts": [sys.executable, "-m", "analysis.retrieval", "--help"],
    }
    begun = {  # side by side: most of their time goes into imports
        words: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words, command in asked.items()
    }
    for words, process in begun.items():
        said, complained = process.communicate(timeout=120)
        assert process.returncode == 0, complained
        assert words in said
