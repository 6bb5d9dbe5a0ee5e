"""Which heads are local and which global, and which of the global ones are sink heads."""

import numpy as np
import pytest
from xarray import DataArray

from analysis.rhythm.head_sets import HeadSets, averaged, chosen_layers, head_sets, sink_overlap
from probes.errors import HeadscopeError
from probes.heads import Head, parse_heads


def per_head(values: object, **coords: object) -> DataArray:
    return DataArray(np.asarray(values, dtype=float), dims=("layer", "head"), coords=coords)


def names(heads: tuple[Head, ...]) -> str:
    return ",".join(map(str, heads))


TEN = per_head([[5, 1, 9, 3, 7], [2, 8, 4, 6, 0]])


def test_local_heads_are_the_share_of_the_lowest_distance_and_global_ones_of_the_highest() -> None:
    sets = head_sets(TEN)
    assert names(sets.local) == "L1H4,L0H1,L1H0"
    assert names(sets.global_) == "L0H2,L1H1,L0H4"
    assert sets.layers == (0, 1)
    assert len(head_sets(TEN, share=0.29).local) == 2  # never more than the share


def test_heads_at_the_same_distance_are_taken_by_layer_then_number_in_both_sets() -> None:
    sets = head_sets(per_head([[1, 1, 1], [1, 1, 1]]), share=0.34)
    assert names(sets.local) == names(sets.global_) == "L0H0,L0H1"


def test_heads_are_ranked_among_the_chosen_layers_alone() -> None:
    sets = head_sets(TEN, share=0.2, layers=[1])
    assert names(sets.local) == "L1H4"
    assert names(sets.global_) == "L1H1"
    assert sets.layers == (1,)


def test_layers_are_called_by_their_coordinate_where_there_is_one() -> None:
    sets = head_sets(per_head(TEN.values, layer=[12, 15]), share=0.2, layers=[15])
    assert names(sets.local) == "L15H4"
    assert float(averaged(per_head(TEN.values, layer=[12, 15]), sets.global_)) == 8


def test_a_head_without_a_distance_is_in_neither_set() -> None:
    sets = head_sets(per_head([[np.nan, 1, 2, 3, 4]]), share=0.4)
    assert names(sets.local) == "L0H1,L0H2"
    assert names(sets.global_) == "L0H4,L0H3"
    with pytest.raises(HeadscopeError, match="2 have a distance"):
        head_sets(per_head([[np.nan, np.nan, np.nan, 3, 4]]), share=0.4)


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        ("all", 3, (0, 1, 2)),
        ("middle", 36, (12, 15, 18, 21, 24)),  # Qwen3-4B, as the paper lists them
        ("middle", 30, (10, 12, 15, 17, 20)),
        ("middle", 2, (0, 1)),
        ("middle", 1, (0,)),
        ("lower", 30, tuple(range(10))),
        ("upper", 30, tuple(range(20, 30))),
        ("upper", 2, (1,)),
        ([5, 1, 5], 6, (1, 5)),
    ],
)
def test_layers_are_named_as_the_paper_chooses_them(
    layers: str | list[int], count: int, expected: tuple[int, ...]
) -> None:
    assert chosen_layers(layers, range(count)) == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share": 0.05}, "0.05 of 10 heads is less than one head"),
        ({"share": 0.6}, "at most 0.5, for the sets not to overlap: not 0.6"),
        ({"share": 0.0}, "lies above 0"),
        ({"layers": "top"}, "no layers 'top': choose all, lower, middle, upper"),
        ({"layers": [2]}, "There is no layer 2: the layers are 0 to 1"),
        ({"layers": []}, "at least one layer"),
    ],
)
def test_sets_that_would_be_empty_or_overlap_are_refused_in_a_sentence(
    options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(HeadscopeError, match=sentence):
        head_sets(TEN, **options)  # type: ignore[arg-type]


def test_the_sink_heads_among_the_global_ones_stand_beside_what_chance_would_give() -> None:
    mass = per_head([[0.9, 0.3, 0.8, 0, 0], [0.31, 0, 0, 0, 0]])
    sets = HeadSets(local=(), global_=tuple(parse_heads("L0H0,L0H1,L0H2,L1H1")), layers=(0, 1))
    found = sink_overlap(sets, mass)
    assert found == {"global_sinks": 2, "global": 4, "share": 0.5, "expected": pytest.approx(4 * 0.3), "threshold": 0.3}
    # Chance draws from the layers that were ranked.
    lower = HeadSets(local=(), global_=tuple(parse_heads("L0H0,L0H2")), layers=(0,))
    assert sink_overlap(lower, mass)["expected"] == pytest.approx(2 * 2 / 5)
    assert sink_overlap(sets, mass, threshold=0.85)["global_sinks"] == 1


def test_a_mean_over_heads_weighs_each_head_once_and_keeps_what_is_missing() -> None:
    values = DataArray(np.arange(12, dtype=np.float16).reshape(2, 2, 3), dims=("layer", "head", "token"))
    values[0, 0, 2] = np.nan
    found = averaged(values, parse_heads("L0H0,L1H1"))
    assert found.dims == ("token",)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [(0 + 9) / 2, (1 + 10) / 2, np.nan])
    with pytest.raises(HeadscopeError, match="no head to average"):
        averaged(values, ())


def test_a_mean_over_many_half_precision_heads_is_not_rounded_on_the_way() -> None:
    values = DataArray(np.full((1, 8192, 1), 10, dtype=np.float16), dims=("layer", "head", "token"))
    assert averaged(values, [Head(0, head) for head in range(8192)]).values.tolist() == [
        10
    ]  # their sum is beyond the type
