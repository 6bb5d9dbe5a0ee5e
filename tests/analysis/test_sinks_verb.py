"""`headscope sinks`: the prompts it builds, the records it keeps, and what it makes of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analysis.cli import main
from analysis.runs import list_runs
from analysis.sink_cases import SinkCase, build, own_cases, sink_cases
from analysis.sink_run import delimiters, examine, shortened
from analysis.sink_summary import by_condition, metric_frame, metric_table, sink_tokens
from probes.errors import HeadscopeError
from probes.subject import Subject

Build = Callable[..., Subject]
TEXTS = ("The cat sat on the mat, and the dog lay by the fire all day long; then it rained.",
         "In spring the river rises over the meadow, and nobody crosses it before the month of May ends.")  # fmt: skip


def wordy(subject: Subject, **special: str) -> Subject:
    """The subject with a tokenizer of words w0 to w96."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return replace(subject, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, **special))


def own(text: str, *, bos: bool = False) -> SinkCase:
    return SinkCase("own", bos, None, 0, 0, text)


def record(kind: str, ids: list[int], received: float, at: list[int], *, length: int = 64) -> dict[str, Any]:
    sinks = [{"position": key, "token": f"t{ids[key]}", "received": received} for key in at]
    per_head = {"received_first": [[received, 0.0]], "first_share": [[received, 0.0]]}
    zeros = {name: [[0.0, 0.0]] for name in ("sink_share", "sink_share_rest", "sink_contribution", "unspent")}
    return {"kind": kind, "bos": False, "length": length, "ids": ids, "sinks": sinks, "per_head": per_head | zeros}


@pytest.mark.model
def test_prompts_have_the_tokens_asked_for_and_the_same_text_with_and_without_bos(smollm: Subject) -> None:
    cases = sink_cases(smollm, "quick", lengths=[64, 200], count=2)
    assert {case.kind for case in cases} == {"natural", "chat", "random", "repeated"}
    assert len({case.id for case in cases}) == len(cases) == 4 * 2 * 2 * 2
    beginning = smollm.tokenizer.bos_token_id
    for case in cases:
        ids = build(smollm, case).tolist()
        assert len(ids) == case.length
        assert (ids[0] == beginning) == case.bos
        if case.bos and case.kind != "chat":
            assert ids[1:] == build(smollm, replace(case, bos=False)).tolist()[:-1]
        if case.kind == "repeated":
            assert len({*ids[1:]}) == 1
        if case.kind == "random":
            assert not {*ids[1:]} & {*smollm.tokenizer.all_special_ids}
        if case.kind == "chat":
            assert smollm.tokenizer.decode(ids).endswith("?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.model
def test_bad_prompts_are_refused_in_a_sentence(smollm: Subject, tmp_path: Path) -> None:
    with pytest.raises(HeadscopeError, match="no room for a text within the chat template"):
        build(smollm, SinkCase("chat", True, 32, 0, 0))
    with pytest.raises(HeadscopeError, match="has 3 tokens and 16 are needed"):
        build(smollm, own("one two three"))
    with pytest.raises(HeadscopeError, match="too short to see a sink"):
        sink_cases(smollm, "quick", lengths=[8])
    with pytest.raises(HeadscopeError, match="go beyond the 8192 positions"):
        sink_cases(smollm, "quick", lengths=[9000])
    with pytest.raises(HeadscopeError, match="no grid 'huge'"):
        sink_cases(smollm, "huge")
    file = tmp_path / "mine.jsonl"
    for text, sentence in (('{"text": "a"}\n', "at least two lines"), ("no json\n", "not JSONL"),
                           ('{"text": 3}\n[]\n', "at least two lines")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(HeadscopeError, match=sentence):
            own_cases(smollm, file)


def test_a_tokenizer_without_bos_has_prompts_without_one_only(tiny: Build) -> None:
    without, with_one = wordy(tiny("llama")), wordy(tiny("llama"), bos_token="w1")
    kinds = {"natural", "random", "repeated"}  # neither has a chat template
    for subject, starts in ((without, {False}), (with_one, {True, False})):
        cases = sink_cases(subject, "quick", lengths=[20], count=2)
        assert {case.bos for case in cases} == starts
        assert {case.kind for case in cases} == kinds


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_only_a_learned_sink_leaves_attention_unspent_and_shares_stay_shares(tiny: Build, family: str) -> None:
    subject = wordy(tiny(family))
    found = examine(subject, own(" ".join(f"w{i}" for i in torch.randint(3, 90, (40,)).tolist())))
    unspent = np.array(found["per_head"]["unspent"])
    assert (unspent > 1e-3).all() if family == "gpt_oss" else (unspent < 1e-5).all()
    for name, values in found["per_head"].items():
        assert np.shape(values) == (2, 4), name
        if name not in ("write", "distance", "value_ratio"):
            assert ((np.array(values) >= 0) & (np.array(values) <= 1)).all(), name
    assert ("value_ratio" in found["per_head"]) == bool(found["sinks"])


@pytest.mark.model
def test_delimiters_are_punctuation_and_white_space_and_no_special_token(smollm: Subject) -> None:
    ids = smollm.tokenizer("<|im_start|>Yes, it is.\n\n 'I' é!")["input_ids"]
    tokens = [smollm.tokenizer.decode([token]) for token in ids]
    marked = [token for token, found in zip(tokens, delimiters(smollm, ids, tokens), strict=True) if found]
    assert "".join(marked).replace(" ", "") == ",.\n\n''!"


def test_a_record_keeps_every_massive_entry_and_the_next_one() -> None:
    entries = [{"value": 5000.0 - i} for i in range(20)] + [{"value": 99.0}] * 20
    kept = shortened({"median": 0.1, "entries": entries})["entries"]
    assert len(kept) == 21
    assert len(shortened({"median": 10.0, "entries": entries})["entries"]) == 8


def test_the_interval_of_a_sink_rate_does_not_shrink_to_a_point_where_all_prompts_agree() -> None:
    records = [record("natural", [1, 2], 0.9, [0])] * 10
    rates = metric_frame(metric_table(records), seed=0).query("metric == 'sink_rate'")
    assert rates["value"].tolist() == [1, 0]
    assert rates["low"].iloc[0] < 0.9
    assert rates["high"].iloc[1] > 0.1


def test_conditions_are_told_apart_by_kind_and_length() -> None:
    records = [record("natural", [1, 2], 0.9, [0]), record("natural", [1, 2], 0.1, []),
               record("natural", [1, 2], 0.9, [0, 1], length=256), record("random", [1, 2], 0.1, [])]  # fmt: skip
    rows = {(row["kind"], row["length"]): row for row in by_condition(records, seed=0)}
    assert len(rows) == 3
    assert rows["natural", 64]["sink_rate"]["value"] == 0.25  # of two heads in two prompts
    assert rows["natural", 64]["first_is_sink"]["value"] == 0.5
    assert rows["natural", 256]["sinks_per_prompt"]["value"] == 2
    assert rows["random", 64]["first_share"]["value"] == pytest.approx(0.05)


def test_a_token_is_counted_by_prompts_and_by_where_it_stood() -> None:
    records = [record("natural", [7, 5, 7], 0.4, [0, 2]), record("natural", [5, 7, 7], 0.6, [1, 2]),
               record("natural", [5, 7, 5], 0.5, []), record("chat", [7, 7], 0.5, [])]  # fmt: skip
    rows = {(row["kind"], row["token"], row["first"]): row for row in sink_tokens(records)}
    assert set(rows) == {("natural", "t7", True), ("natural", "t7", False)}
    assert (rows["natural", "t7", True]["prompts"], rows["natural", "t7", True]["sink_in"]) == (1, 1)
    later = rows["natural", "t7", False]
    assert (later["prompts"], later["sink_in"]) == (3, 2)
    assert later["received"] == pytest.approx((0.4 + 0.6 + 0.6) / 3)


@pytest.mark.model
def test_a_run_says_where_the_sinks_are_and_a_resumed_one_ends_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mine.jsonl", tmp_path / "runs"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    arguments = ["sinks", "--cases", str(file), "--lengths", "18", "--out", str(out), "--device", "cpu"]
    verb(*arguments, "--dry-run")
    assert "4 prompts of up to 18 tokens" in capsys.readouterr().out
    verb(*arguments, "--json")
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["judged_on"] == {"kind": "own", "bos": False, "n": 2}
    assert [row["bos"] for row in summary["by_condition"]] == [True, False]
    assert summary["by_condition"][1]["first_is_sink"]["value"] == 1
    assert summary["massive"]["massive"], "this model's residual stream has massive activations"
    [run] = list_runs(out)[0]
    frame = run.heads().set_index(["metric", "layer", "head"])
    top = summary["sink_heads"][0]
    layer, head = (int(part) for part in top["head"][1:].split("H"))
    assert frame.loc[("first_share", layer, head), "value"] == pytest.approx(top["first_share"]["value"])
    assert frame.loc["first_share"]["value"].mean() == pytest.approx(summary["overall"]["first_share"]["value"])
    before = [(run.path / name).read_bytes() for name in ("cases.jsonl", "summary.json", "heads.parquet")]
    lines = before[0].splitlines(keepends=True)
    (run.path / "cases.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])  # killed in the middle of a line
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "state": "stopped"}))
    verb(*arguments, "--resume", "last")
    assert "heads park more than 0.3" in capsys.readouterr().out
    assert [(run.path / name).read_bytes() for name in ("cases.jsonl", "summary.json", "heads.parquet")] == before


def verb(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
