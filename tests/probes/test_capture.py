"""One forward, many statistics, as labelled arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from kernels.statistics import EDGES, PER_TILE, STATISTICS, QueryWindow
from probes.capture import PATTERN_TOKENS, capture, frozen_pattern
from probes.errors import HeadscopeError
from probes.plan import LayerPlan, Plan, Swap
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap

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


def logits(subject: Subject, text: Prompt, later: Tensor, frozen: dict[int, Tensor]) -> Tensor:
    """Of a prompt and then of three more tokens one by one, every head of some layers following a frozen pattern."""
    heads = torch.ones(1, subject.anatomy.query_heads, dtype=torch.bool)
    steps = {layer: LayerPlan(swaps=(Swap(heads, "frozen", {"pattern": frozen[layer]}),)) for layer in frozen}
    cache = DynamicCache(config=subject.model.config)
    with Tap(subject, plan=Plan(steps, steps)), torch.inference_mode():
        parts = [text.ids[None], *later[None, :, None].unbind(1)]
        return torch.cat([subject.model(part, past_key_values=cache).logits for part in parts], dim=1)


def its_own_pattern_alone_changes_nothing(subject: Subject, layers: Sequence[int], n: int) -> None:
    text, other, later = prompt(n), prompt(n), torch.randint(3, 90, (3,))
    plain = logits(subject, text, later, {})
    for source, same in ((text, True), (other, False)):
        found = logits(subject, text, later, {layer: frozen_pattern(subject, source, layer) for layer in layers})
        assert bool((found - plain).abs().max() <= 1e-5 * plain.abs().max()) is same


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_a_prompt_under_its_own_frozen_pattern_keeps_its_logits_and_under_anothers_does_not(
    tiny: Build, family: str
) -> None:
    its_own_pattern_alone_changes_nothing(tiny(family), [0, 1], 12)


def test_the_default_model_under_a_prompts_own_frozen_pattern_keeps_its_logits(smollm: Subject) -> None:
    its_own_pattern_alone_changes_nothing(smollm, [0, 15, 29], 24)


def test_a_pattern_is_refused_for_a_long_prompt_and_for_a_layer_that_is_not_there(tiny: Build) -> None:
    with pytest.raises(HeadscopeError, match="2049 are too many, 2048 the most"):
        frozen_pattern(tiny("llama"), prompt(PATTERN_TOKENS + 1), 0)
    with pytest.raises(HeadscopeError, match="There is no layer 2: this model has layers 0 to 1"):
        frozen_pattern(tiny("llama"), prompt(), 2)
