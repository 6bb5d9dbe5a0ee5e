"""`headscope rhythm` on a tiny random Llama: what a run keeps and says, how it goes on, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch import Tensor

from analysis.cli import main
from analysis.rhythm.reading import read_rhythm
from analysis.rhythm.windows import windowed_distances
from analysis.runs import Run, list_runs
from probes.subject import Subject

Verb = Callable[..., Run]
SENTENCES = (
    "First I count the red apples, and there are seven of them. Then I add the four green ones from the other basket.",
    "Seven and four make eleven. Two are eaten, so I take two away.\nEleven minus two is nine.",
    "That leaves nine apples. I check it again: five and two and two. It still is nine.",
)  # fmt: skip
KEPT = ("cases.jsonl", "summary.json", "heads.parquet")


def lines(count: int) -> list[dict[str, Any]]:
    """Traces of different length; the second one says too little."""
    said = [" ".join(SENTENCES[(i + k) % 3] for k in range(2 + i % 2)) for i in range(count)]
    said[1] = "Nine."
    return [
        {"id": f"apples-{i}", "question": f"How many apples are left in basket {i}?", "response": text, "answer": "9"}
        for i, text in enumerate(said)
    ]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("traces") / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines(6)))
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path], mine: Path) -> Run:
    """A run of all, with two traces perturbed."""
    out = tmp_path_factory.mktemp("runs")
    headscope("rhythm", "--model", str(tiny_folder()), "--traces", str(mine), "--perturb", "2", "--out", str(out),
              "--json")  # fmt: skip
    return list_runs(out)[0][0]


def headscope(*arguments: str) -> None:
    """The command line, which ends by leaving the program."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["rhythm", *arguments])
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


def bytes_of(run: Run) -> dict[str, bytes]:
    files = [*(run.path / name for name in KEPT), *sorted((run.path / "arrays").iterdir())]
    return {file.name: file.read_bytes() for file in files}


def test_a_run_keeps_each_traces_tokens_entropies_and_the_numbers_of_every_head(whole: Run) -> None:
    records = whole.cases()
    assert [record["case"] for record in records] == ["apples-0", *(f"apples-{i}" for i in range(2, 6))]
    for record, line in zip(records, [line for line in lines(6) if line["response"] != "Nine."], strict=True):
        assert "".join(record["tokens"]) == line["response"]
        assert record["question"] == line["question"]
        assert record["prompt_tokens"] > 5
        count = len(record["tokens"])
        for name in ("entropy", "next_entropy", "log_probability"):
            assert len(record[name]) == count
        arrays = load_file(whole.path / "arrays" / record["arrays"])
        assert {name: values.shape for name, values in arrays.items()} == {
            "waad": (2, 4, count), "fai": (3, 2, 4, count), "waad_windows": (2, 2, 4, count),
        }  # fmt: skip
        five, ten, twenty = arrays["waad_windows"][0], arrays["waad"], arrays["waad_windows"][1]
        assert (five <= 5).all()
        assert (five < ten).all()
        assert (ten < twenty).all()
        assert np.isfinite(arrays["fai"][0]).all()
        assert np.isnan(arrays["fai"][2, ..., -10:]).all()  # v2 begins ten tokens ahead


def test_the_summary_says_what_was_left_out_and_names_heads_that_the_table_ranks(whole: Run) -> None:
    summary = whole.summary()
    assert summary["n_cases"] == 5
    assert [each["case"] for each in summary["left_out"]] == ["apples-1"]
    assert summary["left_out"][0]["tokens"] < 24
    frame = whole.heads()
    order = frame[frame["metric"] == "distance"].sort_values("value")[["layer", "head"]].to_numpy().tolist()
    names = [f"L{layer}H{head}" for layer, head in order]
    assert summary["sets"]["local"] == names[:2]
    assert summary["sets"]["global"] == names[::-1][:2]
    assert summary["sets"]["halves"]["local"]["size"] == 2
    assert summary["sets"]["sinks"]["global"] == 2
    for name in ("entropy", "lag", "next_entropy"):
        found = summary["couplings"][name]
        assert found["verdict"] in ("agrees", "reverses", "not shown")
        assert found["lift"]["value"] == pytest.approx(found["observed"]["value"] / found["null"]["value"] - 1)
    assert len(summary["spans"]) == 2
    assert ["perturbation" in record for record in whole.cases()] == [True, True, False, False, False]
    assert summary["perturbation"]["traces"] == summary["perturbation"]["plain"]["survival"]["high"]["n"] == 2
    assert summary["horizons"] == {"analysis": [0, None], "v1": [10, 50], "v2": [10, 100]}
    assert summary["published"]["couplings"]["Qwen3-4B-Base, GSM8K"]["receiver"]["lift"] == 1.7149
    assert "NaN" not in (whole.path / "cases.jsonl").read_text() + (whole.path / "summary.json").read_text()


def test_a_stopped_run_goes_on_and_ends_with_the_bytes_of_one_that_was_not(
    whole: Run, tiny_folder: Callable[..., Path], mine: Path
) -> None:
    before = bytes_of(whole)
    cases = (whole.path / "cases.jsonl").read_text().split("\n")
    (whole.path / "cases.jsonl").write_text("\n".join(cases[:2]) + "\n" + cases[2][:40])
    (whole.path / "summary.json").unlink()
    manifest = json.loads((whole.path / "manifest.json").read_text())
    (whole.path / "manifest.json").write_text(json.dumps({**manifest, "state": "stopped"}))
    headscope("rhythm", "--model", str(tiny_folder()), "--traces", str(mine), "--perturb", "2", "--json",
              "--out", str(whole.path.parent), "--resume", whole.id)  # fmt: skip
    assert bytes_of(whole) == before


def test_a_run_shows_itself_and_gives_the_credit_of_every_token(
    whole: Run, tiny_folder: Callable[..., Path], mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "credit.jsonl"
    headscope("rhythm", "--model", str(tiny_folder()), "--traces", str(mine), "--perturb", "2", "--export", str(file),
              "--strategy", "global", "--out", str(whole.path.parent), "--resume", "last")  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())  # a narrow screen breaks lines
    for words in (
        "global heads are sink heads",
        "Left out as too short, 1",
        "not shown",
        "as asked",
        "content words that survive",
    ):
        assert words in said
    credited = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    assert [each["id"] for each in credited] == [record["case"] for record in whole.cases()]
    for each, record in zip(credited, whole.cases(), strict=True):
        assert each["tokens"] == record["tokens"]
        weights = np.array(each["weights"])
        assert set(weights) == {1.0, 1.5}
        assert (weights > 1).sum() == round(0.4 * len(weights))
        assert min(np.array(each["fai"])[weights > 1]) >= max(np.array(each["fai"])[weights == 1])


def test_a_model_writes_its_own_traces_and_one_that_was_stopped_writes_only_the_rest(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    asked = ["--model", str(tiny_folder()), "--count", "3", "--new-tokens", "30", "--no-sensitivity", "--json",
             "--out", str(tmp_path)]  # fmt: skip
    headscope("rhythm", *asked)
    run = list_runs(tmp_path)[0][0]
    before, written = bytes_of(run), (run.path / "traces.jsonl").read_text()
    summary = run.summary()
    assert summary["written"] == {"temperature": 0.7, "new_tokens": 30}
    assert summary["sensitivity"] is None
    assert summary["perturbation"] is None
    assert summary["accuracy"]["n"] == 3
    assert "waad_windows" not in load_file(run.path / "arrays" / "0000.safetensors")
    (run.path / "traces.jsonl").write_text(written[:100])
    (run.path / "cases.jsonl").unlink()
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "state": "stopped"}))
    headscope("rhythm", *asked, "--resume", "last")
    assert (run.path / "traces.jsonl").read_text() == written
    assert bytes_of(run) == before


def test_what_can_not_be_done_is_refused_in_a_sentence_before_a_run_begins(
    tiny_folder: Callable[..., Path], mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ("--model", str(tiny_folder()), "--traces", str(mine), "--out", str(tmp_path / "runs"))
    short = tmp_path / "short.jsonl"
    short.write_text('{"prompt": "Say nine.", "response": "Nine it is."}\n')
    sentences = {
        "at least 24 tokens": (*tiny[:3], str(short), *tiny[4:]),
        "at least 400 tokens": (*tiny, "--window", "400"),
        "none of local, global, coupled": (*tiny, "--export", "x.jsonl", "--strategy", "middle"),
        "exclude each other": (*tiny, "--write"),
        "add --write": (*tiny, "--temperature", "1"),
        "nor two whole numbers": (*tiny, "--horizon", "v3"),
        "nor numbers of layers": (*tiny, "--layers", "top"),
        "There is no layer 7": (*tiny, "--layers", "7"),
        "less than one head": (*tiny, "--share", "0.01"),
        "no part of a rule": (*tiny, "--peaks", "height=3"),
    }
    for sentence, arguments in sentences.items():
        assert sentence in refused(capsys, *arguments)
    assert not list_runs(tmp_path / "runs")[0]


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    tiny_folder: Callable[..., Path], mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headscope("rhythm", "--model", str(tiny_folder()), "--traces", str(mine), "--dry-run", "--json",
              "--out", str(tmp_path))  # fmt: skip
    assert json.loads(capsys.readouterr().out)["cases"] == 6
    assert not list_runs(tmp_path)[0]


def test_a_window_read_beside_the_one_asked_for_is_the_same_as_if_it_had_been_asked_for(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    subject, ids = tiny("llama"), some_tokens(40)[0]
    both = windowed_distances(subject, ids, range(12, 40), (5, 20))
    for i, window in enumerate((5, 20)):
        asked = read_rhythm(subject, ids, range(12, 40), window=window)["waad"]
        np.testing.assert_allclose(both[i].values, asked.values, atol=1e-5)
