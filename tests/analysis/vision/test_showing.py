"""What the dashboard reads of a vision run."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis.vision.showing import Shown, marks, read_shown, rows_shown
from probes.errors import HeadscopeError


def shown() -> Shown:
    """Two steps, two layers of two heads, three patches; every row's largest value is 255 times its scale."""
    maps = np.zeros((2, 4, 3), np.uint8)
    maps[1, 3] = 255, 51, 0
    maps[1, 0] = 0, 255, 0
    return Shown(np.zeros((4, 4, 3), np.uint8), maps, np.full((2, 4), 0.5, np.float16), np.zeros((3, 4), np.float32))


def test_a_map_comes_back_at_its_own_size_and_several_heads_are_averaged() -> None:
    one = shown().look(1, [(1, 1)], per_layer=2)
    np.testing.assert_allclose(one.attention, [0.5, 0.1, 0])
    assert (one.whole, one.strongest, one.even) == pytest.approx((0.6, 0.5, 0.2))
    np.testing.assert_allclose(shown().look(1, [(1, 1), (0, 0)], per_layer=2).attention, [0.25, 0.3, 0])


@pytest.mark.parametrize(("step", "heads"), [(2, [(0, 0)]), (0, [(2, 0)]), (0, [])])
def test_a_step_or_a_head_that_was_not_kept_is_refused(step: int, heads: list[tuple[int, int]]) -> None:
    with pytest.raises(HeadscopeError, match="2 steps and 4 heads"):
        shown().look(step, heads, per_layer=2)


def test_a_missing_a_damaged_and_a_foreign_file_are_each_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(HeadscopeError, match="--shown"):
        read_shown(tmp_path / "none.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(HeadscopeError, match="can't be read"):
        read_shown(tmp_path / "half.safetensors")
    save_file({"picture": np.zeros((2, 2, 3), np.uint8)}, tmp_path / "other.safetensors")
    with pytest.raises(HeadscopeError, match="lacks maps, scale, patches"):
        read_shown(tmp_path / "other.safetensors")


def test_every_piece_of_a_split_name_is_marked_and_nothing_around_the_caption_is() -> None:
    umbrella = {"name": "umbrella", "start": 3, "stop": 11, "invented": True}
    cat = {"name": "cat", "start": 15, "stop": 18, "invented": False}
    tokens = [" ", "An", " um", "brella", ", a", " cat", "<end>"]
    found = marks(tokens, "An umbrella, a cat", [umbrella, cat])
    assert [mark for mark, _ in found] == ["", "", "invented", "invented", "", "true", ""]
    assert found[5] == ("true", "cat")


def test_only_pictures_whose_maps_were_kept_are_shown() -> None:
    rows = [{"picture": "a/b", "arrays": "set-0-0.safetensors"}, {"picture": "c"}]
    assert list(rows_shown([{"set": "own", "rows": rows}])) == ["set-0-0"]
