"""`headscope map`: what it reads, keeps, refuses, and how it goes on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.cli import main
from analysis.maps import map_run
from analysis.maps.exact import row
from analysis.maps.kept_layers import Rule, kept_layer, kept_layers
from analysis.maps.map_prompts import Text, prompt_of
from analysis.maps.map_reader import MapReader, both_ways_in, in_half, masks_only_by
from analysis.maps.map_sizes import kept_bytes, layers_of
from analysis.maps.map_summary import ranges
from analysis.runs import list_runs
from kernels.attention import visible_pairs
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.prompt import Prompt

TEXT = "The cat sat on the mat, and the dog lay by the fire all day long; then it rained, and the cat came in."


@pytest.fixture
def run_map(tiny_folder, tmp_path):
    """Calls the verb on a tiny model of two layers."""

    def call(*arguments: str, out: Path | None = None) -> Path:
        folder = out or tmp_path / "runs"
        main_quietly("map", "--model", str(tiny_folder()), "--out", str(folder), *arguments)
        return folder

    return call


def main_quietly(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code in (0, None), ended.value.code


def only_run(folder: Path):
    runs, problems = list_runs(folder)
    assert (len(runs), problems) == (1, [])
    return runs[0]


def test_a_prompt_of_ones_own_is_kept_with_its_tokens_and_read_without_the_model(run_map, capsys):
    run = only_run(run_map("--prompt", TEXT))
    assert "q, k and L of 8 heads in 2 layers kept as float16" in " ".join(capsys.readouterr().out.split())
    case = run.cases()[0]
    assert "".join(case["texts"]) == TEXT
    assert len(case["ids"]) == case["tokens"] == len(case["texts"])
    assert kept_layers(run) == [0, 1]
    assert float(row(run, [Head(1, 3)], case["tokens"] - 1).sum()) == pytest.approx(1)
    table = run.heads()
    assert len(table) == 4 * 8
    assert set(table["metric"]) == {"sink_share", "first_share", "entropy", "distance"}
    assert np.isfinite(table[["value", "low", "high"]].to_numpy()).all()


def test_the_heads_numbers_are_those_of_their_rows(run_map):
    run = only_run(run_map("--prompt", TEXT, "--layers", "1"))
    n = run.cases()[0]["tokens"]
    rows = np.stack([row(run, [Head(1, 2)], query).values for query in range(n)])
    values = run.heads().query("layer == 1 and head == 2").set_index("metric")["value"]
    away = np.arange(n)[:, None] - np.arange(n)
    logs = np.log(rows, where=rows > 0, out=np.zeros_like(rows))
    assert values["distance"] == pytest.approx((rows * away).sum(-1).mean(), rel=1e-4)
    assert values["entropy"] == pytest.approx(-(rows * logs).sum(-1).mean(), rel=1e-4)
    assert values["first_share"] == pytest.approx(rows[:, 0].mean(), rel=1e-4)
    sinks = [sink["position"] for sink in run.cases()[0]["sinks"]]
    assert values["sink_share"] == pytest.approx(rows[:, sinks].sum(-1).mean(), rel=1e-4, abs=1e-9)


def test_only_the_layers_asked_for_are_kept_in_as_many_bytes_as_foretold(run_map, tmp_path, capsys):
    run_map("--tokens", "300", "--layers", "1", "--json", "--dry-run", out=tmp_path / "nowhere")
    foretold = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "nowhere").exists()
    run = only_run(run_map("--tokens", "300", "--layers", "1"))
    assert kept_layers(run) == [1]
    assert run.cases()[0]["tokens"] == foretold["tokens"] == 300
    held = sum(file.stat().st_size for file in (run.path / "arrays").iterdir())
    assert held == pytest.approx(foretold["bytes_on_disk"], rel=0.02)


def test_what_smollm_takes_at_8k_tokens_is_what_the_design_says(smollm):
    bare = kept_bytes(smollm.anatomy, 8192, range(30)) - 30 * 9 * (4 * 8192 + 2 * 256 * 256)
    assert bare == 30 * (9 + 3) * 64 * 8192 * 2


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(run_map, tmp_path, monkeypatch, tiny_folder):
    whole = only_run(run_map("--prompt", TEXT, out=tmp_path / "whole"))
    written = map_run.keep_overviews
    monkeypatch.setattr(map_run, "keep_overviews", lambda *_: (_ for _ in ()).throw(HeadscopeError("stopped here.")))
    arguments = ["map", "--model", str(tiny_folder()), "--prompt", TEXT, "--out", str(tmp_path / "halves")]
    with pytest.raises(SystemExit):
        main(arguments)
    monkeypatch.setattr(map_run, "keep_overviews", written)
    main_quietly(*arguments, "--resume", "last")
    halves = only_run(tmp_path / "halves")
    names = ["cases.jsonl", "summary.json", "heads.parquet",
             *(f"arrays/{name}.safetensors" for name in ("L0", "L1", "overview"))]  # fmt: skip
    assert [(halves.path / name).read_bytes() == (whole.path / name).read_bytes() for name in names] == [True] * 6


def test_a_full_disk_is_known_before_the_forward(run_map, monkeypatch, tmp_path, capsys, tiny_folder):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(SystemExit):
        main(["map", "--model", str(tiny_folder()), "--tokens", "100", "--out", str(tmp_path / "runs")])
    assert "MB are free at" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.model
def test_a_message_goes_through_the_template_and_is_cut_inside_it(smollm):
    whole = prompt_of(smollm, Text(TEXT, None, True, None))
    cut = prompt_of(smollm, Text(TEXT, None, True, len(whole) - 5))
    assert len(cut) <= len(whole) - 5
    assert cut.ids[-3:].tolist() == whole.ids[-3:].tolist()  # the template still ends it
    first, last = cut.spans["message"][0], cut.spans["message"][-1]
    assert TEXT.startswith(cut.text[cut.offsets[first][0] : cut.offsets[last][1]])
    with pytest.raises(HeadscopeError, match="leaves no room"):
        prompt_of(smollm, Text(TEXT, None, True, 5))


@pytest.mark.model
def test_tokens_cut_a_text_and_count_those_of_the_one_that_ships(smollm, tmp_path):
    whole = prompt_of(smollm, Text(TEXT, None, False, None))
    assert prompt_of(smollm, Text(TEXT, None, False, 7)).ids.tolist() == whole.ids[:7].tolist()
    assert len(prompt_of(smollm, Text(None, None, False, 2000))) == 2000
    assert len(prompt_of(smollm, Text(None, None, False, None))) == 1024
    (tmp_path / "text.txt").write_text(TEXT)
    assert prompt_of(smollm, Text(None, tmp_path / "text.txt", False, None)).text == TEXT


@pytest.mark.model
@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (Text("a", Path("b"), False, None), "choose one"),
        (Text(" \n", None, False, None), "is empty"),
        (Text("a", None, False, None), "fewer than two tokens"),
        (Text(None, Path("nowhere.txt"), False, None), "not a readable UTF-8 text file"),
        (Text(None, None, False, 9000), "cut it with --tokens 8192"),
    ],
)
def test_a_prompt_that_cant_be_read_is_refused_in_a_sentence(smollm, asked, sentence):
    with pytest.raises(HeadscopeError, match=sentence):
        prompt_of(smollm, asked)


@pytest.mark.model
def test_a_model_without_a_template_refuses_a_message(smollm):
    bare = replace(smollm, tokenizer=SimpleNamespace(chat_template=None))
    with pytest.raises(HeadscopeError, match="no chat template"):
        prompt_of(bare, Text(TEXT, None, True, None))


def test_layers_are_all_or_numbers_that_exist(tiny):
    anatomy = tiny("llama").anatomy
    assert layers_of("all", anatomy) == [0, 1]
    assert layers_of("1, 0,1", anatomy) == [0, 1]
    for wrong in ("2", "", "upper", "-1"):
        with pytest.raises(HeadscopeError, match="numbers from 0 to 1"):
            layers_of(wrong, anatomy)


def test_a_mask_that_says_more_than_order_window_and_one_picture_is_noticed():
    def says(mask, window):
        return masks_only_by(mask, Rule(0, 1.0, window, None, False, both_ways_in(mask)))

    plain = visible_pairs(20, 20, window=6)[None, None]
    assert says(plain, 6)
    assert not says(plain, None)
    one_pair = plain.clone()
    one_pair[..., 2, 4] = True
    assert not says(one_pair, 6)
    picture = plain.clone()
    picture[..., 2:10, 2:10] = True  # its tokens see each other, as in Gemma 3
    assert both_ways_in(picture) == (2, 10)
    assert says(picture, 6)
    picture[..., 12:14, 12:14] = True
    assert not says(picture, 6)
    added = torch.zeros(1, 1, 20, 20).masked_fill(~plain, float("-inf"))
    assert says(added, 6)
    added[..., 5, 5] = -0.5  # a slope by distance
    assert not says(added, 6)


def test_a_rule_that_is_no_softmax_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["map", "--model", "pair-clipped-softmax", "--tokens", "40", "--out", str(tmp_path)])
    assert "only a softmax's map can be kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_numbers_too_large_for_float16_are_kept_in_bfloat16():
    small, large = torch.ones(2), torch.tensor([1.0, 1e6])
    assert [x.dtype for x in in_half(small, small)] == [torch.float16] * 2
    assert [x.dtype for x in in_half(small, large)] == [torch.bfloat16] * 2


def test_spans_are_kept_as_stretches(tiny, keep):
    assert ranges([0, 1, 4]) == [[0, 2], [4, 5]]
    run = keep(tiny("llama"))
    assert run.cases()[0]["spans"] == {"start": [[0, 2], [4, 5]]}
    assert kept_layer(run, 0).rule.learned_sink is False


def test_queries_beyond_the_window_do_not_count_as_seeing_a_key(tiny, tmp_path):
    reader = MapReader([0, 1], tmp_path)
    map_run.read_through(tiny("mistral"), Prompt(torch.arange(3, 23), "", ((0, 0),) * 20, {}), reader)
    found, seen = reader.found(), visible_pairs(20, 20, window=6).sum(0).tolist()
    assert found["seen_by"].values.tolist() == [seen, seen]
    mean = found["received_sum"].values / np.array(seen)
    np.testing.assert_allclose(found["received"].values, mean, atol=1e-6)
