"""The strongest pairs of a map, against the maps that the model itself gives, and the small pictures of heads."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from analysis.maps.exact import weight
from analysis.maps.overview import as_weights, overview_bytes
from analysis.maps.strongest_pairs import AROUND, Pair, stretches, strongest_pairs
from analysis.maps.thumbnails import SIDE, thumbnails
from analysis.maps.windows import Window, whole_window
from analysis.runs import Run
from probes.heads import Head
from probes.subject import Subject

Keep = Callable[..., Run]
Maps = Callable[..., np.ndarray]


@pytest.fixture
def read(tiny: Callable[..., Subject]) -> Subject:
    return tiny("llama")


def test_the_strongest_pair_is_the_models_own_largest_weight_and_the_next_ones_stand_elsewhere(
    read: Subject, keep: Keep, maps: Maps
) -> None:
    run = keep(read)
    own = maps(read, run)[1, 2]
    pairs = strongest_pairs(run, Head(1, 2), whole_window(len(own)), leave_out=[0])
    free = own.copy()
    free[:, 0] = 0
    assert (pairs[0].query, pairs[0].key) == np.unravel_index(free.argmax(), free.shape)
    assert [pair.weight for pair in pairs] == pytest.approx([own[pair.query, pair.key] for pair in pairs], abs=0.01)
    assert [pair.weight for pair in pairs] == sorted((pair.weight for pair in pairs), reverse=True)
    for places in ([pair.query for pair in pairs], [pair.key for pair in pairs]):
        assert len(set(places)) == len(places) == 6
        assert 0 not in [pair.key for pair in pairs]


def test_pairs_stay_in_the_window_and_a_window_without_weight_has_none(read: Subject, keep: Keep) -> None:
    run = keep(read)
    pairs = strongest_pairs(run, Head(0, 1), Window(45, (20, 30), (10, 18)), leave_out=[])
    assert len(pairs) == 6
    for pair in pairs:
        assert 20 <= pair.query < 30
        assert 10 <= pair.key < 18
    assert strongest_pairs(run, Head(0, 1), Window(45, (0, 10), (20, 30)), leave_out=[]) == []


def test_the_first_token_which_sees_but_itself_is_no_example(read: Subject, keep: Keep) -> None:
    run = keep(read)
    assert weight(run, Head(0, 1), 0, 0) == pytest.approx(1)
    assert 0 not in [pair.query for pair in strongest_pairs(run, Head(0, 1), whole_window(45), leave_out=[])]


def test_a_map_drawn_from_its_overview_passes_over_the_cells_that_hold_a_sink(
    read: Subject, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = keep(read)
    exact = strongest_pairs(run, Head(1, 2), whole_window(45), leave_out=[0, 7], top=1)
    monkeypatch.setattr("analysis.maps.drawing.MOST_PAIRS", 100)
    [coarse] = strongest_pairs(run, Head(1, 2), whole_window(45), leave_out=[0, 7], top=1)
    assert coarse.key not in (0, 7)
    assert coarse.weight == pytest.approx(exact[0].weight, rel=0.07)  # an overview tells weights apart by 6.5 %


def test_the_text_around_a_pair_is_one_stretch_where_both_are_near_and_stays_in_the_prompt() -> None:
    assert stretches(Pair(20, 10, 1.0), 100) == [(0, 20 + AROUND + 1)]
    assert stretches(Pair(95, 40, 1.0), 100) == [(40 - AROUND, 40 + AROUND + 1), (95 - AROUND, 100)]
    assert stretches(Pair(5, 5, 1.0), 6) == [(0, 6)]
    assert stretches(Pair(10, 60, 1.0), 100)[0][0] == 0  # a picture's tokens see later ones


def test_thumbnails_are_small_tell_heads_apart_and_are_clear_where_no_query_sees_a_key(
    read: Subject, keep: Keep
) -> None:
    run = keep(read)
    found = thumbnails(run, 1)
    assert list(found) == [Head(1, head) for head in range(read.anatomy.query_heads)]
    assert len(set(found.values())) == len(found)
    assert all(len(png) < 2_000 for png in found.values())
    alpha = np.asarray(Image.open(io.BytesIO(found[Head(1, 2)])).convert("RGBA"))[..., 3]
    assert alpha.shape[0] <= SIDE
    assert not alpha[np.triu_indices(len(alpha), 1)].any()
    assert alpha[np.tril_indices(len(alpha))].all()
    assert thumbnails(run, 9) == {}


def test_one_layer_of_the_overview_is_the_same_as_that_layer_of_the_whole(read: Subject, keep: Keep) -> None:
    run = keep(read, layers=(1, 0))
    whole = overview_bytes(run, "max")
    for layer in (0, 1):
        one = overview_bytes(run, "max", layer=layer)
        assert one["layer"].values.tolist() == [layer]
        assert (one.sel(layer=layer).values == whole.sel(layer=layer).values).all()
    assert as_weights(whole.values).max() <= 1.0
