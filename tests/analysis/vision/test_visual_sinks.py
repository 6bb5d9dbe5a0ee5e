"""Visual sinks: one that is planted is found, by the stream and by attention, and heads are sorted by it."""

from typing import Any

import numpy as np
import pytest
import torch
from xarray import DataArray

from analysis.vision.masses import image_maps
from analysis.vision.visual_sinks import (
    attended_sinks,
    enrichment,
    find_dimensions,
    image_centric,
    non_sink_ratio,
    sink_strength,
    visual_sinks,
)
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt
from probes.prompt import Prompt
from probes.subject import Subject

MASSIVE, ALWAYS = 7, 8  # coordinates of the residual stream: large in sinks alone; the same in every text token
SLOW = 3  # a coordinate of a head that RoPE hardly turns
PLANTED = 5  # the image token that is a sink
FIRST = 11  # the id of every prompt's first token
REACH = 4.0  # a threshold that a stream of 32 coordinates allows


def plant(subject: Subject) -> None:
    """The first token and one image token carry a massive coordinate, and every query likes keys that do."""
    text = subject.model.model.language_model
    embeddings = text.embed_tokens.weight
    embeddings[:, ALWAYS] = 2.0
    embeddings[FIRST, MASSIVE] = 200.0
    for layer in subject.anatomy.decoder:
        attention: Any = layer.module
        attention.q_proj.weight[SLOW :: layer.head_size, ALWAYS] = 4.0
        attention.k_proj.weight[SLOW :: layer.head_size, MASSIVE] = 4.0

    def massive(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed.view(-1, 16, changed.shape[-1])[:, PLANTED, MASSIVE] = 400.0
        return changed

    subject.model.model.multi_modal_projector.register_forward_hook(massive)


@pytest.fixture
def planted(tiny: Any, picture_prompt: Any) -> tuple[Subject, list[ImagePrompt]]:
    subject = tiny("llava")
    with torch.no_grad():
        plant(subject)
    prompts = [picture_prompt(subject, before, behind) for before, behind in ((3, 4), (1, 2))]
    for prompt in prompts:
        prompt.ids[0] = FIRST
    return subject, prompts


def test_the_coordinate_by_which_sinks_are_known_is_found(planted: Any) -> None:
    assert find_dimensions(*planted, threshold=REACH) == (MASSIVE,)


def test_the_known_coordinate_of_the_default_model_is_found_by_the_papers_threshold(smollm: Subject) -> None:
    text = "The cat sat on the mat, and the dog lay in front of the door."
    ids = torch.tensor(smollm.tokenizer.encode(text))
    assert find_dimensions(smollm, [Prompt(ids, "", ((0, 0),) * len(ids), {})]) == (507,)


def test_a_model_without_sinks_has_no_such_coordinate(tiny: Any, picture_prompt: Any) -> None:
    subject = tiny("llava")
    assert find_dimensions(subject, [picture_prompt(subject, 2, 2)], threshold=REACH) == ()


def test_the_planted_visual_sink_is_found_in_the_stream_of_every_prompt_of_a_batch(planted: Any) -> None:
    subject, prompts = planted
    for prompt, phi in zip(prompts, sink_strength(subject, prompts, [MASSIVE]), strict=True):
        assert phi.shape == (2, len(prompt))
        expected = np.zeros(16, bool)
        expected[PLANTED] = True
        assert (visual_sinks(phi, prompt, threshold=REACH) == expected).all()
        # The first token is a sink too, and no visual one.
        assert (phi.isel(position=0) >= REACH).all()


def test_strength_is_the_largest_of_the_dimensions_by_the_root_mean_square(planted: Any) -> None:
    subject, prompts = planted
    with torch.inference_mode():
        states = subject.model(prompts[0].ids[None], **prompts[0].inputs, output_hidden_states=True).hidden_states
    x = torch.stack(states[:-1])[:, 0]
    expected = (x[..., [2, MASSIVE]].abs() / x.pow(2).mean(-1, keepdim=True).sqrt()).amax(-1)
    (phi,) = sink_strength(subject, prompts[:1], [2, MASSIVE])
    assert np.allclose(phi, expected, rtol=1e-4)


def test_the_planted_visual_sink_is_found_by_attention_alone(planted: Any) -> None:
    subject, prompts = planted
    for maps in image_maps(subject, prompts, [[20, 21, 22], [23, 24]]):
        assert attended_sinks(maps).values.nonzero()[0].tolist() == [PLANTED]


def test_one_head_of_many_makes_no_sink_and_a_mean_over_steps_decides() -> None:
    maps = DataArray(np.zeros((2, 5, 5, 3)), dims=("step", "layer", "head", "image"))
    maps[:, 0, 0, 1] = 0.9
    assert not attended_sinks(maps).any()  # one of 25 heads is less than a twentieth
    maps[:, 0, 1, 1] = 0.9
    assert attended_sinks(maps).values.tolist() == [False, True, False]
    maps[1] = 0
    assert attended_sinks(maps).any()
    assert not attended_sinks(maps, threshold=0.5).any()


PATCHES = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1], [np.nan] * 4]
LEFT_TOP = (0.0, 0.0, 0.5, 0.5)


def test_the_share_of_sinks_in_the_background_stands_beside_that_of_all_image_tokens() -> None:
    sinks = DataArray([[True, True, False, False, True], [False, True, False, False, False]], dims=("layer", "image"))
    found = enrichment(sinks, PATCHES, [LEFT_TOP])
    assert found["sinks"].values.tolist() == [2, 1]  # the separator is nowhere
    assert found["background"].values.tolist() == [0.5, 1]
    assert float(found["base"]) == 0.75
    assert found["enrichment"].values == pytest.approx([2 / 3, 4 / 3])


def test_no_sink_and_no_background_give_zeros_and_no_nan() -> None:
    none = DataArray([False] * 5, dims="image")
    assert np.isfinite(enrichment(none, PATCHES, [LEFT_TOP]).to_array()).all()
    everywhere = enrichment(~none, PATCHES, [(0.0, 0.0, 1.0, 1.0)])
    assert (float(everywhere["base"]), float(everywhere["enrichment"])) == (0, 0)


def test_image_centric_heads_give_the_image_enough_and_its_sinks_little() -> None:
    sinks = DataArray([[True, False]], dims=("layer", "image"))
    values = [[0.1, 0.3], [0.3, 0.1], [0.0, 0.15], [0.0, 0.0]]  # looks, parks, hardly looks, does not look
    maps = DataArray(np.array(values)[None, None], dims=("step", "layer", "head", "image"))
    assert non_sink_ratio(maps, sinks).values.ravel() == pytest.approx([0.75, 0.25, 1, 0])
    assert image_centric(maps, sinks).values.ravel().tolist() == [True, False, False, False]
    assert not image_centric(maps, sinks, ratio=0.8).any()
    assert image_centric(maps, sinks, least=0.1).values.ravel().tolist() == [True, False, True, False]


def test_thresholds_and_coordinates_out_of_reach_are_refused_in_a_sentence(planted: Any) -> None:
    subject, prompts = planted
    with pytest.raises(HeadscopeError, match=r"below 5\.7"):
        find_dimensions(subject, prompts)
    with pytest.raises(HeadscopeError, match="stream of 32, and 1415, 2533 can't"):
        sink_strength(subject, prompts, (1415, 2533))
    with pytest.raises(HeadscopeError, match="none can't be"):
        sink_strength(subject, prompts, ())
