"""Maps laid on boxes, on grids small enough to count by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from xarray import DataArray

from analysis.vision.grounding import (
    area_share,
    centre_inside,
    centre_map,
    covered,
    energy_inside,
    even_map,
    ground,
    hit,
)
from probes.errors import HeadscopeError


def grid(rows: int, columns: int) -> NDArray[np.float64]:
    return np.array(
        [[c / columns, r / rows, (c + 1) / columns, (r + 1) / rows] for r in range(rows) for c in range(columns)]
    )


FOUR = grid(2, 2)
LEFT_TOP = (0.0, 0.0, 0.5, 0.5)


def one(*values: float) -> DataArray:
    return DataArray(list(values), dims="image")


def test_a_patch_that_a_box_cuts_counts_by_the_part_inside() -> None:
    # The box covers all of the first patch's height and half of the second's width.
    assert covered(FOUR, [(0.0, 0.0, 0.75, 0.5)]).values == pytest.approx([1, 0.5, 0, 0])
    assert float(energy_inside(one(0.2, 0.4, 0.2, 0.2), FOUR, [(0.0, 0.0, 0.75, 0.5)])) == pytest.approx(0.4)


def test_boxes_that_overlap_are_counted_once() -> None:
    boxes = [(0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.75, 0.5)]
    assert area_share(boxes) == pytest.approx(0.375)
    assert covered(FOUR, boxes).values == pytest.approx([1, 0.5, 0, 0])


def test_a_box_that_reaches_beyond_the_picture_counts_by_the_part_within() -> None:
    assert area_share([(-1.0, -1.0, 0.5, 0.5)]) == pytest.approx(0.25)


def test_columns_and_rows_are_not_mixed_up() -> None:
    wide = (0.0, 0.0, 1.0, 1 / 3)  # the first of three rows
    assert centre_inside(grid(3, 2), [wide]).values.tolist() == [True, True, False, False, False, False]
    assert covered(grid(3, 2), [wide]).values == pytest.approx([1, 1, 0, 0, 0, 0])


def test_the_pointing_game_asks_for_the_centre_of_the_strongest_patch() -> None:
    assert float(hit(one(0.5, 0.2, 0.2, 0.1), FOUR, [LEFT_TOP])) == 1
    assert float(hit(one(0.2, 0.5, 0.2, 0.1), FOUR, [LEFT_TOP])) == 0
    # Half of the second patch is inside, its centre is not.
    assert float(hit(one(0.2, 0.5, 0.2, 0.1), FOUR, [(0.0, 0.0, 0.7, 0.5)])) == 0


def test_patches_that_tie_for_the_largest_value_share_the_hit() -> None:
    assert float(hit(one(0.4, 0.4, 0.1, 0.1), FOUR, [LEFT_TOP])) == 0.5
    assert float(hit(even_map(FOUR), FOUR, [LEFT_TOP])) == 0.25


def test_a_separator_wins_no_pointing_game_and_counts_on_neither_side() -> None:
    patches = np.vstack([FOUR, np.full(4, np.nan)])
    maps = one(0.1, 0.05, 0.05, 0.0, 0.8)
    assert float(hit(maps, patches, [LEFT_TOP])) == 1
    assert float(energy_inside(maps, patches, [LEFT_TOP])) == pytest.approx(0.5)
    assert even_map(patches).values == pytest.approx([0.25, 0.25, 0.25, 0.25, 0])
    assert np.isfinite(centre_map(patches)).all()
    assert float(centre_map(patches)[4]) == 0


def test_a_map_of_zeros_has_no_energy_inside_and_no_nan() -> None:
    assert float(energy_inside(one(0, 0, 0, 0), FOUR, [LEFT_TOP])) == 0


def test_heads_are_judged_together_as_they_are_one_by_one() -> None:
    maps = DataArray(np.random.default_rng(0).random((3, 2, 4)), dims=("layer", "head", "image"))
    together = ground(maps, FOUR, [(0.0, 0.0, 0.6, 0.7)])
    assert together["ratio"].dims == ("layer", "head")
    for layer in range(3):
        for head in range(2):
            alone = ground(maps[layer, head], FOUR, [(0.0, 0.0, 0.6, 0.7)])
            assert float(alone["inside"]) == pytest.approx(float(together["inside"][layer, head]))
            assert float(alone["hit"]) == float(together["hit"][layer, head])


def test_the_even_control_is_at_chance_and_the_centre_control_above_it_in_the_middle() -> None:
    patches = grid(8, 8)
    middle = ground(even_map(patches), patches, [(0.25, 0.25, 0.75, 0.75)], elsewhere=even_map(patches))
    assert float(middle["even_ratio"]) == pytest.approx(1)
    assert float(middle["elsewhere_ratio"]) == pytest.approx(1)
    assert float(middle["centre_ratio"]) > 1.5
    corner = ground(even_map(patches), patches, [(0.0, 0.0, 0.25, 0.25)])
    assert float(corner["centre_ratio"]) < 1


def test_what_can_not_be_judged_is_refused_in_a_sentence() -> None:
    with pytest.raises(HeadscopeError, match="cover some of the picture"):
        ground(even_map(FOUR), FOUR, [(0.5, 0.5, 0.5, 0.9)])
    with pytest.raises(HeadscopeError, match="4 image tokens can't be laid on 6"):
        hit(even_map(FOUR), grid(2, 3), [LEFT_TOP])
    with pytest.raises(HeadscopeError, match="never negative"):
        ground(one(0.5, -0.1, 0, 0), FOUR, [LEFT_TOP])
