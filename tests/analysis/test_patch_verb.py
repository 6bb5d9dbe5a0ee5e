"""`headscope patch` from the command line: a run that can stop, a table of every head, and refusals in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis import patch
from analysis.cli import main
from analysis.display import BLOCKS, heat_row
from analysis.patching import patch_heads, stacked
from analysis.runs import Run, find_run
from probes.subject import load

pytestmark = pytest.mark.model
PAIR = ("--clean", "The capital of France is", "--corrupt", "The capital of Japan is",
        "--answer", " Paris", "--wrong", " Tokyo")  # fmt: skip
Patched = Callable[..., Run]


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> str:
    return str(tiny_folder(layers=3))


@pytest.fixture
def patched(model: str, tmp_path: Path) -> Patched:
    """Runs the verb to its end and returns the run."""

    def run(*options: str) -> Run:
        with pytest.raises(SystemExit) as ended:
            main(["patch", *PAIR, "--model", model, "--device", "cpu", "--out", str(tmp_path), *options])
        assert ended.value.code == 0
        return find_run("last", tmp_path, command="patch")

    return run


def test_every_head_gets_the_effect_of_its_patch_and_what_it_writes_itself(patched: Patched, model: str) -> None:
    run = patched()
    subject = load(model, device="cpu")
    clean, corrupt = (torch.tensor(subject.tokenizer(text)["input_ids"]) for text in (PAIR[1], PAIR[3]))
    answer, wrong = (subject.tokenizer(text)["input_ids"][0] for text in (PAIR[5], PAIR[7]))
    direct = stacked(patch_heads(subject, clean, corrupt, answer=answer, wrong=wrong))
    table = run.heads().pivot(index=["layer", "head"], columns="metric", values="value")
    assert table["patching"].tolist() == pytest.approx(direct.values.ravel().tolist(), abs=1e-5)
    assert set(table.columns) == {"patching", "attribution"}
    assert not run.heads().isna().any(axis=None)
    summary = run.summary()
    assert summary["clean"] == pytest.approx(direct.attrs["clean"], abs=1e-4)
    strongest = abs(direct).stack(at=("layer", "head")).idxmax().item()
    assert summary["top"][0]["head"] == f"L{strongest[0]}H{strongest[1]}"
    logits = subject.model(clean[None]).logits[0, -1]
    assert summary["clean"] == pytest.approx(float(logits[answer] - logits[wrong]), abs=1e-4)


def test_a_stopped_run_goes_on_with_the_layers_that_are_left_and_ends_with_the_same_bytes(
    patched: Patched, monkeypatch: pytest.MonkeyPatch, model: str, tmp_path: Path
) -> None:
    whole = patched()
    examined: list[int] = []
    measure = patch.patch_layer

    def interrupted(between: Any, layer: int, **settings: Any) -> Any:
        if examined:
            raise KeyboardInterrupt
        examined.append(layer)
        return measure(between, layer, **settings)

    monkeypatch.setattr(patch, "patch_layer", interrupted)
    arguments = ["patch", *PAIR, "--model", model, "--device", "cpu", "--out", str(tmp_path / "stopped")]
    with pytest.raises(SystemExit):
        main(arguments)

    def counted(between: Any, layer: int, **settings: Any) -> Any:
        examined.append(layer)
        return measure(between, layer, **settings)

    monkeypatch.setattr(patch, "patch_layer", counted)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--resume", "last"])
    assert ended.value.code == 0
    assert examined == [0, 1, 2]
    resumed = find_run("last", tmp_path / "stopped", command="patch")
    for name in ("cases.jsonl", "heads.parquet", "summary.json"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_only_the_layers_asked_for_are_patched(patched: Patched) -> None:
    run = patched("--layers", "0,2:3", "--where", "last")
    frame = run.heads()
    assert sorted(set(frame.loc[frame["metric"] == "patching", "layer"])) == [0, 2]
    assert sorted(set(frame.loc[frame["metric"] == "attribution", "layer"])) == [0, 1, 2]
    assert {row["head"][:2] for row in run.summary()["top"]} == {"L0", "L2"}


def test_answers_as_json_are_the_summary_and_nothing_else(patched: Patched, capsys: pytest.CaptureFixture[str]) -> None:
    run = patched("--json")
    assert json.loads(capsys.readouterr().out)["summary"] == run.summary()


def test_the_terminal_shows_a_map_of_all_heads_with_the_strongest_the_highest(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    patched()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("L0 ", "L1 ", "L2 "))]
    assert len(rows) == 3
    assert any(BLOCKS[-1] * 2 in row for row in rows)


def test_heat_is_the_square_root_and_its_colour_the_sign() -> None:
    row = heat_row([4.0, -1.0, 0.0], 4.0, 1)
    assert row.plain == BLOCKS[8] + BLOCKS[4] + BLOCKS[0]
    assert row.spans[0].style != row.spans[1].style
    assert heat_row([0.0], 0.0, 2).plain == "  "


def test_the_heads_of_a_patch_can_be_chosen_for_an_intervention(
    patched: Patched, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = patched()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["intervene", "output_zero @ top(patching, 1)", "--task", "facts", "--count", "2", "--controls", "0",
              "--heads-from", run.id, "--dry-run", "--json", "--out", str(tmp_path)])  # fmt: skip
    assert ended.value.code == 0
    best = run.heads().query("metric == 'patching'").nlargest(1, "value").iloc[0]
    arms = json.loads(capsys.readouterr().out)["arms"]
    assert arms["treated"] == [f"output_zero @ L{best['layer']}H{best['head']}"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--corrupt", "The capital of the Netherlands is"), "tokens and the corrupt one"),
        (("--corrupt", "The capital of France is"), "choose a corrupt prompt that changes it"),
        (("--clean", " "), "--clean is empty"),
        (("--answer", " Paris or London"), "--answer: ' Paris or London' is 3 tokens (' Paris', ' or', ' London')"),
        (("--wrong", " Paris"), "--wrong: ' Paris' is the answer's own token"),
        (("--where", "first"), "--where: 'first' is neither"),
        (("--layers", "0:4"), "does not lie in this model's layers, 0:3"),
        (("--layers", "2:2"), "does not lie in this model's layers, 0:3"),
        (("--layers", "all"), "is no list of layers"),
    ],
)
def test_what_cannot_be_patched_is_refused_in_one_sentence_and_leaves_no_run(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["patch", *PAIR, *options, "--model", model, "--device", "cpu", "--out", str(tmp_path / "runs")])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_would_be_patched_and_writes_nothing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["patch", *PAIR, "--model", model, "--dry-run", "--json", "--out", str(tmp_path / "runs")])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cases"], found["heads"], found["tokens"]) == (3, 12, 5)
    assert not (tmp_path / "runs").exists()
