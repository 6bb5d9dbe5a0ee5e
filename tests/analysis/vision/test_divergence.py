"""VHD against two plain passes with hooks, and its statistics on numbers counted by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from xarray import DataArray

from analysis.vision.divergence import (
    correlation_with_image_mass,
    divergence,
    share_of_few,
    token_divergence,
    variant,
    without_outliers,
)
from probes.errors import HeadscopeError
from probes.subject import Subject

CAPTIONS = [[5, 6, 7], [8], [9, 10, 11, 12]]


@pytest.fixture
def three(tiny: Any, picture_prompt: Any) -> Any:
    subject = tiny("llava")
    return subject, [picture_prompt(subject, before, behind) for before, behind in ((3, 4), (1, 2), (2, 6))]


def said(subject: Subject, ids: Tensor, steps: int, **inputs: Tensor) -> Tensor:
    """(step, layer, head, d) at the last positions but one, by hooks on the output projections: one prompt, plainly."""
    caught: list[Tensor] = []
    hooks = [
        layer.output_projection().register_forward_pre_hook(lambda _, args: caught.append(args[0][0]))
        for layer in subject.anatomy.decoder
    ]
    with torch.inference_mode():
        subject.model(ids[None], **inputs)
    for hook in hooks:
        hook.remove()
    heads = subject.anatomy.query_heads
    return torch.stack([x[-steps - 1 : -1].unflatten(-1, (heads, -1)) for x in caught], dim=1)


def plain(subject: Subject, prompts: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Divergence and squared text norm, prompt by prompt."""
    gaps, texts = [], []
    for prompt, caption in zip(prompts, CAPTIONS, strict=True):
        whole = torch.cat([prompt.ids, torch.tensor(caption)])
        seen = said(subject, whole, len(caption), **prompt.inputs)
        unseen = said(subject, whole[whole != subject.anatomy.image_token], len(caption))
        gaps.append((seen - unseen).norm(dim=-1))
        texts.append(unseen.norm(dim=-1) ** 2)
    return gaps, texts


def test_it_equals_two_plain_passes_one_prompt_at_a_time(three: Any) -> None:
    subject, prompts = three
    found = divergence(subject, prompts, CAPTIONS, batch=2)
    gaps, texts = plain(subject, prompts)
    assert np.allclose(found["divergence"], torch.cat(gaps), atol=1e-5)
    assert np.allclose(found["text_activation"], torch.cat(texts), atol=1e-5)
    assert found["prompt"].values.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert float(found["divergence"].min()) > 0


def test_an_even_picture_is_its_own_mean_image_and_no_blank_one(three: Any) -> None:
    subject, prompts = three
    for prompt in prompts:
        prompt.inputs["pixel_values"][:] = 0.3
    assert float(abs(divergence(subject, prompts, CAPTIONS, counterfactual="mean image")["divergence"]).max()) < 1e-4
    assert float(divergence(subject, prompts, CAPTIONS, counterfactual="blank image")["divergence"].max()) > 1e-3


def test_the_mean_image_keeps_each_channel_of_each_prompt(three: Any) -> None:
    subject, prompts = three
    found = divergence(subject, prompts, CAPTIONS, counterfactual="mean image")
    prompt, caption = prompts[2], CAPTIONS[2]
    whole = torch.cat([prompt.ids, torch.tensor(caption)])
    pixels = prompt.inputs["pixel_values"]
    even = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    gap = said(subject, whole, 4, pixel_values=pixels) - said(subject, whole, 4, pixel_values=even)
    assert np.allclose(found["divergence"][-4:], gap.norm(dim=-1), atol=1e-5)


def test_variants_are_named_functions_of_the_same_passes(three: Any) -> None:
    subject, prompts = three
    found = divergence(subject, prompts, CAPTIONS)
    assert np.allclose(variant(found, "squared"), variant(found, "plain") ** 2)
    assert np.allclose(variant(found, "relative") * found["activation"], found["divergence"], atol=1e-6)
    silent = xr.Dataset({"divergence": 1.0, "activation": 0.0})
    assert float(variant(silent, "relative")) == 0


def heads(*values: float) -> DataArray:
    return DataArray([list(values)], dims=("layer", "head"))


def test_a_head_is_an_outlier_only_where_both_numbers_stand_out() -> None:
    # Means 2 and 2, deviations of sqrt(3): the last head alone exceeds 3.73.
    high = heads(1, 1, 1, 5)
    assert without_outliers(high, heads(1, 1, 1, 5)).values.tolist() == [[1, 1, 1, 0]]
    assert without_outliers(high, heads(5, 1, 1, 1)).values.tolist() == [[1, 1, 1, 5]]
    assert without_outliers(high, heads(2, 2, 2, 2)).values.tolist() == [[1, 1, 1, 5]]
    on_the_bound = heads(1, 3)  # mean 2, deviation 1
    assert without_outliers(on_the_bound, on_the_bound).values.tolist() == [[1, 3]]


def test_the_deviation_divides_by_the_number_of_heads_unless_asked() -> None:
    barely = heads(0, 1.5, 2, 2.6)  # mean 1.525, deviation 0.961 or 1.110: the bound is 2.486 or 2.635
    assert without_outliers(barely, barely).values[0, 3] == 0
    assert without_outliers(barely, barely, ddof=1).values[0, 3] == 2.6


def test_outliers_are_judged_within_their_layer() -> None:
    values = DataArray([[1.0, 1, 1, 5], [10, 10, 10, 10]], dims=("layer", "head"))
    assert without_outliers(values, values).values.tolist() == [[1, 1, 1, 0], [10, 10, 10, 10]]


def test_the_token_divergence_sums_the_largest_of_each_layer() -> None:
    values = DataArray([[[4.0, 1, 3, 2], [10, 40, 20, 30]]], dims=("token", "layer", "head"))
    assert token_divergence(values, heads=1).values.tolist() == [44]
    assert token_divergence(values).values.tolist() == [77]  # half of four
    with pytest.raises(HeadscopeError, match="choose 1 to 4"):
        token_divergence(values, heads=5)


def test_the_few_heads_share_is_one_where_one_head_holds_all() -> None:
    assert share_of_few(DataArray(np.eye(1, 20).reshape(2, 10))) == 1
    assert share_of_few(DataArray(np.ones((2, 10)))) == pytest.approx(0.1)
    assert share_of_few(DataArray(np.zeros((2, 10)))) == 0


def test_heads_that_look_and_depend_alike_correlate() -> None:
    values = DataArray(np.arange(8.0).reshape(1, 2, 4), dims=("token", "layer", "head"))
    assert correlation_with_image_mass(xr.Dataset({"divergence": values, "image": values**2})) == pytest.approx(1)
    assert correlation_with_image_mass(xr.Dataset({"divergence": values, "image": -values})) == pytest.approx(-1)


def test_an_unknown_counterfactual_is_refused_in_a_sentence(three: Any) -> None:
    subject, prompts = three
    with pytest.raises(HeadscopeError, match="absent, mean image, blank image"):
        divergence(subject, prompts, CAPTIONS, counterfactual="black")  # type: ignore[arg-type]
