"""Captions run teacher-forced: which step is which row, and what each looks at."""

from typing import Any

import numpy as np
import pytest
import torch
from xarray import DataArray

from analysis.vision.masses import at_steps, image_maps, masses, middle_layers, per_prompt, summed_ratio
from probes.errors import HeadscopeError

CAPTIONS = [[5, 6, 7], [8], [9, 10, 11, 12]]


@pytest.fixture
def three(tiny: Any, picture_prompt: Any) -> Any:
    subject = tiny("llava")
    return subject, [picture_prompt(subject, before, behind) for before, behind in ((3, 4), (1, 2), (2, 6))]


def test_every_step_is_read_where_its_token_is_predicted(three: Any, own_attention: Any) -> None:
    subject, prompts = three
    found = masses(subject, prompts, CAPTIONS, batch=2)
    assert found["prompt"].values.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert found["step"].values.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    for i, (prompt, caption) in enumerate(zip(prompts, CAPTIONS, strict=True)):
        ids = torch.cat([prompt.ids, torch.tensor(caption)])[None]
        with own_attention(subject) as model, torch.inference_mode():
            maps = torch.stack(model(ids, **prompt.inputs, output_attentions=True).attentions)[:, 0]
        own = found.isel(token=found["prompt"].values == i)
        for step in range(len(caption)):
            row = maps[:, :, len(prompt) - 1 + step]
            for name in ("image", "system", "question"):
                expected = row[..., list(prompt.spans[name])].sum(-1).numpy()
                assert np.allclose(own[name][step], expected, atol=1e-5)
            assert np.allclose(own["generated"][step], row[..., len(prompt) :].sum(-1).numpy(), atol=1e-5)


def test_the_four_spans_together_take_all_attention(three: Any) -> None:
    subject, prompts = three
    found = masses(subject, prompts, CAPTIONS)
    together = found["image"] + found["system"] + found["question"] + found["generated"]
    assert np.allclose(together, 1, atol=1e-5)
    assert not found["generated"].values[found["step"].values == 0].any()


def test_maps_of_chosen_steps_are_those_of_all_steps(three: Any) -> None:
    subject, prompts = three
    every = image_maps(subject, prompts, CAPTIONS, batch=2)
    some = image_maps(subject, prompts, CAPTIONS, steps=[[2], [], [3, 1]], batch=2)
    assert [x.sizes["step"] for x in some] == [1, 0, 2]
    assert np.allclose(some[0].values, every[0].values[[2]], atol=1e-6)
    assert np.allclose(some[2].values, every[2].values[[3, 1]], atol=1e-6)
    assert np.allclose(every[1].sum("image"), masses(subject, prompts, CAPTIONS)["image"][3], atol=1e-5)


def test_the_middle_layers_are_those_of_the_paper_in_proportion() -> None:
    assert middle_layers(32) == range(5, 18)
    assert middle_layers(30) == range(5, 17)
    assert len(middle_layers(1)) == 1


def test_the_summed_ratio_adds_layers_and_averages_heads() -> None:
    image = DataArray(np.arange(8.0).reshape(1, 4, 2), dims=("token", "layer", "head"))
    assert summed_ratio(image, layers=range(1, 3)).values.tolist() == [2.5 + 4.5]


def test_a_prompt_counts_once_whatever_the_length_of_its_caption() -> None:
    values = DataArray(
        np.array([1.0, 3, 10])[:, None, None], dims=("token", "layer", "head"), coords={"prompt": ("token", [4, 4, 7])}
    )
    means = per_prompt(values)
    assert means.values.ravel().tolist() == [2, 10]
    assert means["prompt"].values.tolist() == [4, 7]


def test_words_are_picked_by_prompt_and_step_in_the_order_asked(three: Any) -> None:
    subject, prompts = three
    found = masses(subject, prompts, CAPTIONS)["image"]
    picked = at_steps(found, [(2, 3), (0, 1), (2, 3)])
    assert np.array_equal(picked, found[[7, 1, 7]])
    with pytest.raises(HeadscopeError, match="Step 1 of prompt 1"):
        at_steps(found, [(0, 0), (1, 1)])


def test_a_caption_without_tokens_is_refused_in_a_sentence(three: Any) -> None:
    subject, prompts = three
    with pytest.raises(HeadscopeError, match="Caption 1 is empty"):
        masses(subject, prompts, [[5], [], [6]])
    with pytest.raises(HeadscopeError, match="one caption for each prompt"):
        masses(subject, prompts, [[5]])
