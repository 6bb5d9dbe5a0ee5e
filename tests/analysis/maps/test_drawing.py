"""Tiles as pixels and as blocks, and the window that is on screen."""

import io

import numpy as np
import pytest
from PIL import Image
from xarray import DataArray

from analysis.maps import drawing
from analysis.maps.drawing import as_table, blocks, colour_range, pixels, shades, shown_cells, strongest_pair
from analysis.maps.overview import LOWEST
from analysis.maps.tiles import tile
from analysis.maps.windows import FEWEST, Window, parse_stretch, whole_window
from probes.errors import HeadscopeError
from probes.heads import Head


def cells_of(values, size=1):
    coords = {}
    for dim, n in zip(("query", "key"), values.shape, strict=True):
        starts = np.arange(n) * size
        coords |= {f"{dim}_start": (dim, starts), f"{dim}_stop": (dim, starts + size)}
    return DataArray(values, dims=("query", "key"), coords=coords)


def test_no_weight_is_clear_the_largest_is_yellow_and_less_is_darker():
    picture = Image.open(io.BytesIO(pixels(cells_of(np.array([[0.2, 0.0], [0.4, 0.8]])), "linear"))).convert("RGBA")
    weak, none, middle, strong = (picture.getpixel(at) for at in ((0, 0), (1, 0), (0, 1), (1, 1)))
    assert none[3] == 0
    assert weak[3] == middle[3] == strong[3] == 255
    assert strong[:3] == (253, 231, 37)
    assert sum(weak[:3]) < sum(middle[:3]) < sum(strong[:3])


def test_the_logarithmic_range_is_the_same_for_every_map_and_the_linear_one_ends_at_the_largest():
    cells = cells_of(np.array([[0.25, 0.0]]))
    assert colour_range(cells, "log") == (LOWEST, 1.0)
    assert colour_range(cells, "linear") == (0.0, 0.25)
    weights = np.array([LOWEST / 10, LOWEST, np.sqrt(LOWEST), 1.0, 0.0])
    np.testing.assert_allclose(shades(weights, (LOWEST, 1.0), "log"), [0, 0, 0.5, 1, np.nan])


def test_a_map_without_any_weight_is_drawn_clear():
    picture = Image.open(io.BytesIO(pixels(cells_of(np.zeros((2, 3))), "linear"))).convert("RGBA")
    assert {picture.getpixel((x, y))[3] for x in range(3) for y in range(2)} == {0}


def test_blocks_name_the_strongest_cell_of_each_part_and_skip_parts_without_weight():
    values = np.zeros((5, 5))
    values[1, 0], values[4, 4], values[4, 1] = 0.5, 0.2, 0.1
    found = blocks(cells_of(values, size=10), most=3)  # two cells a part, one in the last
    assert len(found) == 3
    first, last = found.iloc[0], found.iloc[-1]
    assert first[["query_start", "query_stop", "key_start", "key_stop"]].tolist() == [0, 20, 0, 20]
    assert first[["from_query", "to_query", "from_key", "to_key", "weight"]].tolist() == [10, 20, 0, 10, 0.5]
    assert last[["query_start", "query_stop", "key_start", "key_stop"]].tolist() == [40, 50, 40, 50]


def test_the_strongest_pair_of_a_window_is_that_of_the_map_however_coarse_the_cells(tiny, keep, monkeypatch):
    run = keep(tiny("llama"))
    window = Window(45, (10, 45), (3, 30))
    exact = tile(run, Head(1, 2), queries=window.queries, keys=window.keys).values
    query, key = np.unravel_index(exact.argmax(), exact.shape)
    assert strongest_pair(run, Head(1, 2), window, leave_out=[]) == (10 + query, 3 + key)
    coarse = tile(run, Head(1, 2), queries=(10, 45), keys=(3, 30), pooling="max", cells=4)
    monkeypatch.setattr(drawing, "tile", lambda *a, **k: tile(*a, **k, cells=4))
    assert coarse.shape == (4, 4)
    assert strongest_pair(run, Head(1, 2), window, leave_out=[]) == (10 + query, 3 + key)


def test_a_window_too_large_to_wait_for_is_cut_from_the_overview(tiny, keep, monkeypatch):
    run = keep(tiny("llama"))
    window = Window(45, (20, 40), (5, 25))
    exact = shown_cells(run, Head(0, 1), window, pooling="max", leave_out=[5])
    assert exact.attrs["left_out"] == [5]
    monkeypatch.setattr(drawing, "MOST_PAIRS", 10)
    found = shown_cells(run, Head(0, 1), window, pooling="max", leave_out=[5])
    assert (found.attrs["coarse"], found.attrs["left_out"]) == (True, [])
    assert found["query_start"].values.tolist() == exact["query_start"].values.tolist()
    assert found["key_stop"].values.tolist() == exact["key_stop"].values.tolist()
    np.testing.assert_allclose(found.values[:, 1:], exact.values[:, 1:], rtol=0.034, atol=LOWEST)


def test_the_table_has_a_row_per_query_and_a_column_per_key():
    table = as_table(cells_of(np.array([[0.1, 0.2, 0.3]]), size=4))
    assert list(table) == ["query", "key 0", "key 4", "key 8"]
    assert table.iloc[0].tolist() == [0, 0.1, 0.2, 0.3]


def test_a_window_zooms_around_a_pair_and_stays_inside_the_prompt():
    whole = whole_window(100)
    assert whole.zoomed(0.5) == Window(100, (25, 75), (25, 75))
    assert whole.zoomed(0.5, at=(99, 0)) == Window(100, (50, 100), (0, 50))
    assert whole.zoomed(2) == whole.moved(queries=0.5, keys=-0.5) == whole
    assert Window(100, (60, 90), (0, 10)).moved(queries=0.5, keys=0.5) == Window(100, (70, 100), (5, 15))
    near = Window(100, (0, 9), (50, 58)).zoomed(0.5)
    assert near.queries[1] - near.queries[0] == near.keys[1] - near.keys[0] == FEWEST
    assert whole_window(5).zoomed(0.5) == whole_window(5)


@pytest.mark.parametrize("text", ["", "5", "5-5", "9-3", "0-101", "-1-4", "a-b", "0-99999999999999", "٣-٥"])
def test_what_is_no_part_of_the_prompt_is_refused_in_a_sentence(text):
    with pytest.raises(HeadscopeError, match="written as 0-100"):
        parse_stretch(text, 100)
    assert parse_stretch(" 3 – 9 ", 100) == (3, 9)
