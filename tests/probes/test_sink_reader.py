"""A SinkReader finds what the model's own maps, values and residual stream say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor

from probes.errors import HeadscopeError
from probes.generation import prefill
from probes.sink_reader import SinkReader
from probes.subject import Subject
from probes.tap import Tap

TOKENS = 20
FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gpt_oss", "gpt2"]
Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


def read(subject: Subject, **inputs: Tensor) -> xr.Dataset:
    reader = SinkReader()
    with Tap(subject, readers=[reader]), torch.inference_mode():
        subject.model(**inputs, use_cache=False)
    return reader.found()


def seen_pairs(subject: Subject) -> list[Tensor]:
    """Which query sees which key, layer by layer: a window counts the query's own position."""
    i, j = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)
    return [(j <= i) & (j > i - (layer.window or TOKENS)) for layer in subject.anatomy.decoder]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_keys_receive_equals_sums_over_the_models_own_maps(
    tiny: Build, own_attention: Any, some_tokens: Tokens, family: str
) -> None:
    subject, ids = tiny(family), some_tokens(TOKENS)
    found = read(subject, input_ids=ids)
    with own_attention(subject) as model:
        maps = torch.stack(model(input_ids=ids, output_attentions=True).attentions)[:, 0]
    seen = torch.stack(seen_pairs(subject)).sum(1)
    received = maps.sum(-2)
    assert found["seen_by"].values.tolist() == seen.tolist()
    assert torch.allclose(torch.tensor(found["received_sum"].values), received, atol=1e-5)
    assert torch.allclose(torch.tensor(found["received"].values), received / seen[:, None], atol=1e-5)
    positions = torch.arange(TOKENS)[:, None]
    mean_query = (maps * positions).sum(-2) / received
    assert torch.allclose(torch.tensor(found["mean_query"].values), mean_query, atol=1e-4)
    near = (positions - torch.arange(TOKENS)).abs() < 8
    shares = torch.tensor(found["distances"].sel(edge=found["edge"] < 8).sum("edge").values)
    assert torch.allclose(shares, (maps * near).sum((-2, -1)) / maps.sum((-2, -1)), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_vectors_in_the_residual_stream(tiny: Build, some_tokens: Tokens, family: str) -> None:
    subject, ids = tiny(family), some_tokens(TOKENS)
    kept: dict[int, dict[str, Tensor]] = {layer.index: {} for layer in subject.anatomy.decoder}

    class Keeper:
        activations = ("input", "heads")

        def read(self, call: Any) -> None:
            kept[call.layer.index]["v"] = call.v[0]

        def read_activation(self, layer: Any, name: str, x: Tensor) -> None:
            kept[layer.index][name] = x[0]

    with Tap(subject, readers=[Keeper()]), torch.inference_mode():
        subject.model(input_ids=ids)
    found = read(subject, input_ids=ids)
    for layer in subject.anatomy.decoder:
        own, weight = kept[layer.index], layer.output_weight()
        for head in range(layer.query_heads):
            here = {"layer": layer.index, "head": head}
            values = (own["v"][head // layer.group_size] @ weight[head]).norm(dim=-1)
            assert found["value_norm"].sel(here).values == pytest.approx(values.numpy(), rel=1e-3)
            said = own["heads"][:, head * layer.head_size : (head + 1) * layer.head_size]
            ratio = ((said @ weight[head]).norm(dim=-1) / own["input"].norm(dim=-1))[1:].mean()
            assert float(found["write"].sel(here)) == pytest.approx(float(ratio), rel=1e-3)


def test_heads_of_a_tower_that_sees_both_ways_are_read_when_asked_for(tiny: Build, own_attention: Any) -> None:
    subject = tiny("llava")
    pixels = torch.randn(1, 3, 16, 16)
    ids = torch.cat([torch.full((1, 16), 96), torch.tensor([[5, 6]])], dim=1)
    reader = SinkReader("vision")
    with Tap(subject, readers=[reader]), torch.inference_mode():
        subject.model(input_ids=ids, pixel_values=pixels)
    found = reader.found()
    tower = subject.model.model.vision_tower
    with own_attention(subject):
        maps = torch.stack(tower(pixels, output_attentions=True).attentions)[:, 0]
    n = maps.shape[-1]
    assert (found["seen_by"].values == n).all()
    assert found["received"].values == pytest.approx(maps.mean(-2).numpy(), abs=1e-5)
    assert "write" not in found


def test_a_batch_and_a_cached_prompt_are_refused_in_a_sentence(tiny: Build, some_tokens: Tokens) -> None:
    subject = tiny("llama")
    with pytest.raises(HeadscopeError, match="over one prompt"):
        read(subject, input_ids=some_tokens(TOKENS, 2))
    cache = prefill(subject, some_tokens(TOKENS)[0])
    with Tap(subject, readers=[SinkReader()]), pytest.raises(HeadscopeError, match="over one prompt"):
        subject.model(input_ids=torch.tensor([[5]]), past_key_values=cache)
