"""Rows, columns and single weights of kept maps."""

import numpy as np
import pytest
import xarray as xr

from analysis.maps.exact import column, layer_heads, row, strongest, tokens_of, weight
from analysis.maps.map_prompts import Text, prompt_of
from analysis.maps.overview import LOWEST, as_bytes, as_weights, overview, overview_bytes
from analysis.maps.tiles import tile
from probes.errors import HeadscopeError
from probes.heads import Head

HALF_PRECISION = 4e-3


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_rows_and_columns_are_those_of_the_models_own_map(family, tiny, keep, maps):
    subject = tiny(family)
    run = keep(subject)
    own, head = maps(subject, run)[1, 2], Head(1, 2)
    for position in (0, 3, 20, 44):
        np.testing.assert_allclose(row(run, [head], position).values, own[position], atol=HALF_PRECISION)
        np.testing.assert_allclose(column(run, [head], position).values, own[:, position], atol=HALF_PRECISION)
    assert row(run, [head], 20).dims == ("key",)
    assert column(run, [head], 20).dims == ("query",)


def test_rows_columns_weights_and_tiles_agree(tiny, keep):
    run, head = keep(tiny("mistral")), Head(0, 1)
    dense = tile(run, head).values
    for query, key in ((44, 44), (44, 39), (44, 38), (3, 0), (3, 4)):
        assert weight(run, head, query, key) == pytest.approx(dense[query, key], abs=1e-6)
        assert float(row(run, [head], query)[key]) == weight(run, head, query, key)
        assert float(column(run, [head], key)[query]) == weight(run, head, query, key)
    assert weight(run, head, 44, 38) == 0  # one beyond the window of 6
    assert weight(run, head, 3, 4) == 0  # in the future


def test_several_heads_give_their_mean_also_across_layers(tiny, keep):
    run = keep(tiny("llama"))
    chosen = [Head(0, 0), Head(0, 3), Head(1, 2)]
    np.testing.assert_allclose(row(run, chosen, 30), np.mean([row(run, [head], 30) for head in chosen], 0))
    np.testing.assert_allclose(column(run, chosen, 4), np.mean([column(run, [head], 4) for head in chosen], 0))
    assert row(run, layer_heads(run, 1), 30).attrs["heads"] == ["L1H0", "L1H1", "L1H2", "L1H3"]
    assert float(row(run, layer_heads(run, 1), 30).sum()) == pytest.approx(1)


def test_the_strongest_come_first_with_their_tokens_and_never_with_no_weight(tiny, keep):
    run = keep(tiny("llama"))
    weights = xr.DataArray([0.0] * 45, dims="key")
    weights[[7, 9, 2]] = [0.5, 0.2, 0.2]
    assert strongest(run, weights).values.tolist() == [[7, "t7", 0.5], [2, "t2", 0.2], [9, "t9", 0.2]]
    assert strongest(run, weights, top=1, leave_out=[7])["position"].tolist() == [2]
    assert float(weights[7]) == 0.5
    assert tokens_of(run)[:2] == ["t0", "t1"]


def test_positions_and_heads_that_are_not_there_get_a_sentence(tiny, keep):
    run = keep(tiny("llama"))
    for ask in (lambda: row(run, [Head(0, 0)], 45), lambda: column(run, [Head(0, 0)], -1),
                lambda: weight(run, Head(0, 0), 3, 45)):  # fmt: skip
        with pytest.raises(HeadscopeError, match="tokens 0 to 44"):
            ask()
    with pytest.raises(HeadscopeError, match="No head is chosen"):
        row(run, [], 3)


def test_overviews_show_every_kept_head_at_once_to_their_step(tiny, keep):
    run = keep(tiny("gemma2"), n=600, layers=(1,))
    for pooling in ("mean", "max"):
        levels = overview_bytes(run, pooling)
        assert levels.shape == (1, 4, 200, 200)  # three tokens a cell
        assert levels["query"].values.tolist() == list(range(0, 600, 3))
        exact = tile(run, Head(1, 3), cells=256, pooling=pooling)
        assert exact["query_start"].values.tolist() == levels["query"].values.tolist()
        shown = overview(run, Head(1, 3), pooling).values
        visible = exact.values > LOWEST
        np.testing.assert_allclose(shown[visible], exact.values[visible], rtol=0.034)
        assert (shown[exact.values == 0] == 0).all()
    with pytest.raises(HeadscopeError, match="no map of L0H3"):
        overview(run, Head(0, 3))


def test_the_byte_scale_keeps_order_and_shows_the_faintest_weight_apart_from_none():
    weights = np.array([0, 1e-12, 1e-7, 1e-5, 0.5, 1.0])
    levels = as_bytes(weights)
    assert levels.tolist()[:3] == [0, 1, 1]
    assert levels[-1] == 255
    assert (np.diff(levels[2:].astype(int)) > 0).all()
    np.testing.assert_allclose(as_weights(levels)[2:], weights[2:], rtol=0.034)


def test_an_overview_that_is_not_this_runs_gets_a_sentence(tiny, keep):
    run = keep(tiny("llama"))
    file = run.path / "arrays" / "overview.safetensors"
    file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(HeadscopeError, match="missing or damaged"):
        overview_bytes(run)


def test_a_record_that_is_not_a_maps_gets_a_sentence(tiny, keep):
    run = keep(tiny("llama"))
    (run.path / "cases.jsonl").write_text('{"case": "prompt"}\n')
    for ask in (overview_bytes, tokens_of):
        with pytest.raises(HeadscopeError, match="missing or damaged"):
            ask(run)
    (run.path / "cases.jsonl").write_text("")
    with pytest.raises(HeadscopeError, match="keeps no map yet"):
        tokens_of(run)


@pytest.mark.model
def test_a_real_models_weights_are_kept_to_its_rounding(smollm, keep, maps):
    run = keep(smollm, layers=(0, 14), prompt=prompt_of(smollm, Text(None, None, False, 128)))
    own = maps(smollm, run)
    for layer in (0, 14):
        for head in range(9):
            np.testing.assert_allclose(tile(run, Head(layer, head)).values, own[layer, head], atol=5e-3)
