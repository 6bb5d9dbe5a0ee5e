"""Tiles of a map out of kept q, k and L: against the model's own maps, what is read, and what is stored."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.maps import kept_layers, stored_tiles, tiles
from analysis.maps.exact import sinks_of
from analysis.maps.kept_layers import kept_layer
from analysis.maps.tiles import tile
from analysis.runs import OpenRun, Run
from probes.errors import HeadscopeError
from probes.heads import Head

HALF_PRECISION = 4e-3  # what rounding q and k to 11 bits may change a weight by, at the logits of these models
WINDOWS = [
    ((0, 45), (0, 45), 512),
    ((0, 45), (0, 45), 8),  # 6 tokens a cell, the last with 3
    ((20, 45), (0, 20), 7),  # below the diagonal
    ((10, 30), (25, 45), 6),  # mostly beyond it
    ((0, 9), (30, 45), 4),  # nothing visible
    ((44, 45), (0, 45), 10),
]


def pooled(dense: np.ndarray, queries: tuple[int, int], keys: tuple[int, int], cells: int, how: str) -> np.ndarray:
    """The slow way, cell by cell."""
    part = dense[slice(*queries), slice(*keys)]
    tall, wide = (-(-length // cells) for length in part.shape)
    reduce = np.mean if how == "mean" else np.max
    return np.array([
        [reduce(part[i : i + tall, j : j + wide]) for j in range(0, part.shape[1], wide)]
        for i in range(0, part.shape[0], tall)
    ])  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_single_pairs_are_the_models_own_weights(family, tiny, keep, maps):
    """Grouped heads, sliding windows of 6, a soft-cap of 2, learned sinks."""
    subject = tiny(family)
    run = keep(subject)
    own = maps(subject, run)
    for layer in (0, 1):
        for head in range(4):
            np.testing.assert_allclose(tile(run, Head(layer, head)).values, own[layer, head], atol=HALF_PRECISION)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(("queries", "keys", "cells"), WINDOWS)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_window_is_the_pooled_dense_map_wherever_it_lies(family, queries, keys, cells, pooling, tiny, keep, maps):
    subject = tiny(family)
    run = keep(subject)
    dense, own = tile(run, Head(0, 3)).values.astype(np.float64), maps(subject, run)[0, 3]
    found = tile(run, Head(0, 3), queries=queries, keys=keys, cells=cells, pooling=pooling)
    np.testing.assert_allclose(found.values, pooled(dense, queries, keys, cells, pooling), atol=1e-6)
    np.testing.assert_allclose(found.values, pooled(own, queries, keys, cells, pooling), atol=HALF_PRECISION)
    starts, stops = found["query_start"].values, found["query_stop"].values
    assert (starts[0], stops[-1]) == queries
    assert (starts[1:] == stops[:-1]).all()
    assert found["key_stop"].values[-1] == keys[1]


def test_the_rows_of_what_is_shown_sum_to_one(tiny, keep):
    """L is that of the rounded q and k: with the model's own, a weight could be above 1."""
    rows = tile(keep(tiny("llama")), Head(1, 2)).values.sum(-1)
    np.testing.assert_allclose(rows, 1, atol=1e-5)


def test_a_model_in_bfloat16_is_kept_as_it_is(tiny, keep):
    subject = tiny("llama")
    subject.model.bfloat16()
    run = keep(subject)
    assert run.cases()[0]["kept_as"] == "bfloat16"
    np.testing.assert_allclose(tile(run, Head(1, 2)).values.sum(-1), 1, atol=1e-5)


def test_keys_left_out_count_as_nothing_and_the_others_are_not_renormalised(tiny, keep):
    run = keep(tiny("gemma2"))
    whole = tile(run, Head(1, 1)).values
    without = tile(run, Head(1, 1), leave_out=[0, 7, 300])
    expected = whole.copy()
    expected[:, [0, 7]] = 0
    np.testing.assert_allclose(without.values, expected, atol=1e-6)
    assert without.attrs["left_out"] == [0, 7]
    assert without.attrs["renormalised"] is False
    cut = tile(run, Head(1, 1), keys=(5, 20), leave_out=[0, 7]).values
    np.testing.assert_allclose(cut, expected[:, 5:20], atol=1e-6)


def test_only_the_rows_and_keys_of_the_window_are_read(tiny, keep, monkeypatch):
    run, read = keep(tiny("llama")), []
    original = kept_layers.KeptLayer._slice
    monkeypatch.setattr(
        kept_layers.KeptLayer, "_slice", lambda *asked: read.append(asked[1:]) or original(*asked)
    )  # fmt: skip
    tile(run, Head(1, 3), queries=(30, 40), keys=(5, 12))
    assert sorted(read) == [("k", 1, 5, 12), ("lse", 3, 30, 40), ("q", 3, 30, 40)]


def test_a_second_look_computes_nothing(tiny, keep, monkeypatch):
    run = keep(tiny("llama"))
    asked = {"queries": (3, 40), "keys": (0, 30), "cells": 9, "pooling": "max", "leave_out": [1]}
    first = tile(run, Head(0, 1), **asked)
    monkeypatch.setattr(tiles, "_computed", lambda *_: pytest.fail("computed again"))
    assert tile(run, Head(0, 1), **asked).identical(first)


def test_everything_that_decides_a_tile_is_in_its_name(tiny, keep):
    run = keep(tiny("llama"))
    asked = {"queries": (3, 40), "keys": (0, 30), "cells": 9, "pooling": "max", "leave_out": [1]}
    others = [{"queries": (4, 40)}, {"keys": (0, 29)}, {"cells": 10}, {"pooling": "mean"}, {"leave_out": []}]
    for change in ({}, *others):
        tile(run, Head(0, 1), **{**asked, **change})
    tile(run, Head(1, 1), **asked)
    tile(run, Head(0, 0), **asked)
    file = kept_layers.layer_file(run, 0)
    layer = kept_layer(run, 0)
    kept = {"q": torch.randn(4, 45, 8).half(), "k": torch.randn(2, 45, 8).half(), "lse": torch.zeros(4, 45)}
    kept_layers.keep_layer(file, layer.rule, kept)  # other numbers in the same place
    tile(run, Head(0, 1), **asked)
    assert len(list((run.path / "arrays" / "tiles").iterdir())) == 9


def test_a_stored_tile_that_is_damaged_is_computed_again(tiny, keep):
    run = keep(tiny("llama"))
    first = tile(run, Head(0, 1))
    (file,) = (run.path / "arrays" / "tiles").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert tile(run, Head(0, 1)).identical(first)


def test_stored_tiles_stay_within_their_bound_and_the_one_looked_at_last_stays(tmp_path):
    files = [tmp_path / "tiles" / f"{name}.safetensors" for name in "abcd"]
    cells = np.zeros((50, 50), dtype=np.float32)
    size = 4 * 2500 + 1000
    for i, file in enumerate(files):
        stored_tiles.store(file, cells, most=3 * size)
        if i >= 1:
            assert stored_tiles.stored(files[0], (50, 50)) is not None
    assert [file.exists() for file in files] == [True, False, True, True]


def test_a_run_that_cant_be_written_to_still_shows_its_tiles(tiny, keep):
    run = keep(tiny("llama"))
    (run.path / "arrays" / "tiles").write_text("in the way")
    assert tile(run, Head(0, 1)).shape == (45, 45)


@pytest.mark.parametrize(
    ("head", "asked", "sentence"),
    [
        (Head(5, 0), {}, "keeps no map of layer 5, only of 0, 1"),
        (Head(0, 4), {}, "L0H4 does not exist"),
        (Head(0, 0, "vision"), {}, "decoder's heads"),
        (Head(0, 0), {"queries": (0, 46)}, "not inside the prompt's 45 tokens"),
        (Head(0, 0), {"keys": (9, 9)}, "not inside"),
        (Head(0, 0), {"cells": 0}, "at least 1 cell"),
        (Head(0, 0), {"pooling": "median"}, "mean or max"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(head, asked, sentence, tiny, keep):
    with pytest.raises(HeadscopeError, match=sentence):
        tile(keep(tiny("llama")), head, **asked)


def test_a_damaged_layer_and_a_run_of_another_verb_get_a_sentence(tiny, keep, tmp_path):
    run = keep(tiny("llama"))
    file = kept_layers.layer_file(run, 0)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(HeadscopeError, match="missing or damaged"):
        tile(run, Head(0, 0))
    Path(file).write_bytes(b"\x00" * 50)
    with pytest.raises(HeadscopeError, match="missing or damaged"):
        tile(run, Head(0, 0))
    with OpenRun.start(tmp_path / "others", "sinks", {}) as other:
        pass
    with pytest.raises(HeadscopeError, match="keeps no map"):
        tile(Run(other.run.path), Head(0, 0))


def test_the_sinks_that_a_run_names_can_be_left_out(tiny, keep):
    subject = tiny("llama")
    for layer in subject.anatomy.decoder:
        layer.module.k_proj.weight.zero_()  # every query spreads evenly, so that the first keys receive most
    run = keep(subject)
    assert sinks_of(run) == []
    case = {**run.cases()[0], "sinks": [{"position": 3, "token": "t3", "heads": 1.0}]}
    (run.path / "cases.jsonl").write_text(json.dumps(case) + "\n")
    assert float(tile(run, Head(0, 0), leave_out=sinks_of(run))[44, 3]) == 0


def test_pages_that_ask_at_once_get_their_own_tiles_and_leave_torchs_threads_as_they_were(tiny, keep):
    run = keep(tiny("llama"))
    heads = [Head(layer, head) for layer in (0, 1) for head in range(4)]
    alone = [tile(run, head, cells=9) for head in heads]
    shutil.rmtree(run.path / "arrays" / "tiles")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda head: tile(run, head, cells=9), heads * 3))
        tile(run, heads[0], cells=8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(found.identical(alone[i % 8]) for i, found in enumerate(together))
