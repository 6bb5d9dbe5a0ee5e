"""`headscope heads`: what a run holds, what each kind of prompt shows, and how it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analysis import retrieval
from analysis.cli import main
from analysis.needles import Case, build, triples
from analysis.retrieval import head_frame
from analysis.role_cases import examine, role_cases, scores_of
from analysis.roles import ROLES
from analysis.runs import OpenRun, Run, list_runs
from probes.errors import HeadscopeError
from probes.subject import Subject

EVERYWHERE, EVEN_ONLY = "3-1", "5-2"


def heads(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["heads", *arguments])
    assert ended.value.code == code


@pytest.fixture
def scored(tmp_path: Path, smollm: Subject) -> Run:
    """A retrieval run in which one head copies in every case and one in the even cases only."""
    records = [
        {"case": f"made-{i}", "passed": True, "scores": {EVERYWHERE: 0.75, **({} if i % 2 else {EVEN_ONLY: 0.5})}}
        for i in range(4)
    ]
    with OpenRun.start(tmp_path, "retrieval", {"made": "by hand"}) as run:
        run.note(model=smollm.describe(), total_cases=len(records))
        for record in records:
            run.add_case(record)
        run.finish(heads=head_frame({"retrieval_score": scores_of(records, 30, 9)}, seed=0), summary={"n_cases": 4})
    return run.run


@pytest.mark.model
def test_a_run_says_of_every_head_what_it_is_and_takes_scores_from_a_retrieval_run(
    tmp_path: Path, scored: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    heads("--count", "2", "--heads-from", scored.id, "--out", str(tmp_path), "--json")
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["retrieval_from"] == scored.id
    assert summary["counts"] == {"natural": 2, "repeated": 2, "needle": 0, "answered": 0}
    assert summary["needle_absent"] is None
    assert summary["role_names"] == [role.name for role in ROLES]
    rows = {row["head"]: row for row in summary["heads"]}
    assert len(rows) == summary["n_heads"] == 270
    assert summary["roles"]["retrieval"]["chosen"] == 2
    assert summary["roles"]["retrieval"]["confirmed_heads"] == ["L3H1"]
    assert "retrieval" in rows["L5H2"]["roles"]
    assert "retrieval" not in rows["L5H2"]["confirmed"]
    for name in ("sink", "local", "previous-token", "induction"):
        assert summary["roles"][name]["confirmed_heads"], name  # this model has heads of each
    explained = {head for role in summary["roles"].values() for head in role["confirmed_heads"]}
    assert set(summary["unexplained"]["heads"]) == set(rows) - explained
    [made] = [run for run in list_runs(tmp_path)[0] if run.manifest["command"] == "heads"]
    frame = made.heads()
    assert set(frame["metric"]) == {role.metric for role in ROLES}
    assert frame.groupby("metric").size().unique().tolist() == [270]
    assert (frame["low"] <= frame["value"] + 1e-9).all()

    written = (made.path / "summary.json").read_bytes()
    heads("--count", "2", "--heads-from", scored.id, "--out", str(tmp_path), "--resume", "last")
    assert "have no confirmed role" in capsys.readouterr().out
    assert (made.path / "summary.json").read_bytes() == written
    assert len(list_runs(tmp_path)[0]) == 2


@pytest.mark.model
def test_a_needle_case_scores_heads_as_the_retrieval_run_does_and_asks_again_without_the_needle(
    smollm: Subject,
) -> None:
    case = Case(triples("detect")[0], length=160, depth=0.5, start=0.3)
    found = examine(smollm, case, new_tokens=24)
    known = retrieval.examine(smollm, case, new_tokens=24)
    assert found["passed"]
    assert found["response"] == known["response"]
    assert scores_of([{"passed": True, "scores": known["scores"]}], 30, 9)[0] == pytest.approx(
        np.array(found["evidence"]["retrieval_score"]), abs=1e-6
    )
    assert case.triple.answer not in found["response_without"]
    assert found["sinks"][0] == 0
    for name in ("sink_present", "sink_absent"):
        shares = np.array(found["evidence"][name])
        assert shares.shape == (30, 9)
        assert shares.max() > 0.5  # this model has sinks
        assert shares.min() >= 0


@pytest.mark.model
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_prompt_without_its_needle_is_the_same_text_and_question_without_it(smollm: Subject, depth: float) -> None:
    case = Case(triples("detect")[0], length=200, depth=depth, start=0.3)
    whole, bare = build(smollm, case), build(smollm, case, needle=False)
    rest = whole.text.replace(case.triple.needle, "")
    assert bare.text.split() == rest.split()
    assert "  " not in bare.text
    assert bare.spans["needle"] == bare.spans["answer"] == ()
    assert bare.spans["question"]


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """A word for each of the tiny models' tokens; no chat template, no token that begins a text."""
    named = {"[unknown]": 3, "the": 92, "of": 93, "and": 94, ".": 95}  # not 0, whose embedding is padding's: zero
    vocabulary = {**{f"w{i}": i for i in range(4, 92)}, **named}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unknown]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unknown]")


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_windows_soft_caps_learned_sinks_and_a_bare_tokenizer_give_evidence_for_every_head(
    tiny: Callable[[str], Subject], words: PreTrainedTokenizerFast, family: str
) -> None:
    subject = tiny(family)
    subject = Subject(name=subject.name, model=subject.model, tokenizer=words, anatomy=subject.anatomy)
    chosen = role_cases(subject, "quick", count=2, needles=False, seed=0)
    assert [type(case).__name__ for case in chosen] == ["SinkCase", "SinkCase", "CopyingExample", "CopyingExample"]
    for case in chosen:
        found = examine(subject, case, new_tokens=4)
        assert found["tokens"] in (126, 128)  # the models' window; twice 63 random tokens
        for metric, values in found["evidence"].items():
            array = np.array(values)
            assert array.shape == (2, 4), metric
            assert (array >= 0).all(), metric
            assert (array <= 1).all() or metric == "write"


def test_a_model_without_a_tokenizer_is_refused_in_a_sentence(tiny: Callable[[str], Subject]) -> None:
    with pytest.raises(HeadscopeError, match="has no tokenizer"):
        role_cases(tiny("llama"), "quick", count=2, needles=True, seed=0)


@pytest.mark.model
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--grid", "huge"], "There is no grid 'huge'"),
        (["--thresholds", "wizard=1"], "there is no role 'wizard'"),
        (["--heads-from", "nothing"], "There is no run named nothing"),
        (["--model", "missing-folder"], "There is no model 'missing-folder'"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    heads(*arguments, "--out", str(tmp_path), code=1)
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.model
def test_a_dry_run_counts_the_prompts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads("--dry-run", "--json", "--out", str(tmp_path))
    said = json.loads(capsys.readouterr().out)
    assert said["cases"] == 16 + 16 + 24
    assert said["longest"] == 1024
    assert not any(tmp_path.iterdir())
