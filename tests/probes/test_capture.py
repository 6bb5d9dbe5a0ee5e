"""One forward, many statistics, as labelled arrays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.statistics import EDGES, PER_TILE, STATISTICS, QueryWindow
from probes.capture import capture
from probes.errors import HeadscopeError
from probes.prompt import Prompt
from probes.subject import Subject

Build = Callable[..., Subject]


def prompt(n: int = 12) -> Prompt:
    offsets = tuple((i, i + 1) for i in range(n))
    return Prompt(torch.randint(3, 90, (n,)), "x" * n, offsets, {"needle": (2, 3)})


def test_every_statistic_has_its_dims_and_a_unit(tiny: Build) -> None:
    wanted = [name for name in STATISTICS if name not in PER_TILE]
    found = capture(tiny("llama"), prompt(), wanted, top=3)
    assert found["entropy"].dims == ("layer", "head", "query")
    assert found["received"].dims == ("layer", "head", "key")
    assert found["top_keys"].dims == ("layer", "head", "query", "rank")
    assert found["top_keys"].shape == (2, 4, 12, 3)
    assert found["distance_histogram"].dims == ("layer", "head", "bin")
    assert found["bin"].values.tolist() == list(EDGES)
    assert found["distance_histogram"].sum("bin").values == pytest.approx(1.0, abs=1e-5)
    assert "mass:needle" in found
    assert all(variable.attrs["unit"] for variable in found.data_vars.values())


def test_a_window_of_queries_gives_future_attention_influence(tiny: Build, own_attention: Any) -> None:
    subject, text = tiny("llama"), prompt()
    found = capture(subject, text, ["received"], windows={"later": QueryWindow(nearest=2, farthest=4)})
    with own_attention(subject) as model:
        maps = torch.stack(model(text.ids[None], output_attentions=True).attentions)[:, 0]
    later = [list(range(key + 2, min(key + 5, 12))) for key in range(12)]
    for key, queries in enumerate(later):
        expected = maps[:, :, queries, key].mean(-1) if queries else torch.zeros(2, 4)
        assert torch.allclose(torch.from_numpy(found["received:later"].values[..., key]), expected, atol=1e-5)


def test_a_tile_is_refused_in_a_sentence(tiny: Build) -> None:
    with pytest.raises(HeadscopeError, match="picture of one head's map"):
        capture(tiny("llama"), prompt(), ["tile_mean"])
