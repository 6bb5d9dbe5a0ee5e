"""Relevance against whole matrices from the model's own eager attention, its maps' gradients kept."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import analysis.vision.relevance
from analysis.vision.relevance import explain, rollout
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt, continued
from probes.prompt import Prompt
from probes.subject import Subject

CAPTION = [5, 6, 7]


@pytest.fixture
def captioned(tiny: Any, picture_prompt: Any) -> tuple[Subject, ImagePrompt]:
    subject = tiny("llava")
    return subject, continued(picture_prompt(subject, 3, 4), CAPTION)


def eager_maps(
    subject: Subject, own_attention: Any, prompt: ImagePrompt, row: int, token: int
) -> tuple[Tensor, Tensor]:
    """Maps and the gradient of one logit by them, (layer, head, n, n)."""
    subject.model.requires_grad_(True)
    with own_attention(subject) as model, torch.enable_grad():
        found = model(prompt.ids[None], **prompt.inputs, output_attentions=True)
        gradients = torch.autograd.grad(found.logits[0, row, token], found.attentions)
    subject.model.requires_grad_(False)
    return torch.cat(found.attentions).detach(), torch.cat(gradients)


def test_relevancy_equals_the_whole_matrix_of_each_target(captioned: Any, own_attention: Any) -> None:
    subject, prompt = captioned
    found = explain(subject, prompt)
    n = len(prompt)
    assert found["row"].values.tolist() == [n - 4, n - 3, n - 2]
    assert found["token"].values.tolist() == CAPTION
    image = list(prompt.spans["image"])
    for at, (row, token) in enumerate(zip(range(n - 4, n - 1), CAPTION, strict=True)):
        maps, gradients = eager_maps(subject, own_attention, prompt, row, token)
        relevancy = torch.eye(n)
        for a, da in zip(maps, gradients, strict=True):
            relevancy = relevancy + (a * da).clamp_min(0).mean(0) @ relevancy
        assert np.allclose(found["relevancy"][at], relevancy[row] - torch.eye(n)[row], atol=1e-5)
        own = (maps * gradients)[:, :, row]
        assert np.allclose(found["gradient"][at], own.abs().mean(1).sum(0), atol=1e-5)
        assert np.allclose(found["gradient_positive"][at], own.clamp_min(0).mean(1).sum(0), atol=1e-5)
        assert np.allclose(found["by_head"][at], own[..., image].sum(-1), atol=1e-5)


def test_rollout_equals_the_product_of_whole_matrices_later_layers_first(captioned: Any, own_attention: Any) -> None:
    subject, prompt = captioned
    maps, _ = eager_maps(subject, own_attention, prompt, 0, 0)
    whole = torch.eye(len(prompt))
    for a in maps:
        step = a.mean(0) + torch.eye(len(prompt))
        whole = step / step.sum(-1, keepdim=True) @ whole
    found = explain(subject, prompt)["rollout"]
    assert np.allclose(found, whole[[len(prompt) - 4, len(prompt) - 3, len(prompt) - 2]], atol=1e-5)
    assert np.allclose(found.sum("key"), 1, atol=1e-5)


def test_rollout_by_hand() -> None:
    first, last = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0.5, 0.5]])
    # Ahat: [[1, 0], [.5, .5]] and [[1, 0], [.25, .75]]; the last times the first.
    assert rollout([last, first], [1]).tolist() == [[0.25 + 0.375, 0.375]]


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "mistral"])
def test_soft_caps_learned_sinks_and_windows_are_in_the_gradients(
    tiny: Any, some_tokens: Any, own_attention: Any, family: str
) -> None:
    subject = tiny(family)
    ids = some_tokens(12)[0]
    prompt = ImagePrompt(ids, "", ((0, 0),) * 12, {}, inputs={}, patches=torch.zeros(0, 4), grids=())
    found = explain(subject, prompt, rows=[10, 11], tokens=[40, 41])
    maps, gradients = eager_maps(subject, own_attention, prompt, 11, 41)
    own = (maps * gradients)[:, :, 11]
    assert np.allclose(found["gradient"][1], own.abs().mean(1).sum(0), atol=1e-5)
    assert not found["by_head"].any()


def test_the_model_is_left_as_it_was(captioned: Any) -> None:
    subject, prompt = captioned
    with torch.inference_mode():
        before = subject.model(prompt.ids[None], **prompt.inputs).logits
    explain(subject, prompt)
    with torch.inference_mode():
        after = subject.model(prompt.ids[None], **prompt.inputs).logits
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in subject.model.parameters())


def test_what_can_not_be_explained_is_refused_in_a_sentence(
    captioned: Any, picture_prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, prompt = captioned
    bare: Prompt = picture_prompt(subject, 1, 1)
    with pytest.raises(HeadscopeError, match="continue the prompt with a caption"):
        explain(subject, bare)
    with pytest.raises(HeadscopeError, match="say which token"):
        explain(subject, bare, rows=[len(bare) - 1])
    with pytest.raises(HeadscopeError, match="one token for each row"):
        explain(subject, bare, rows=[3], tokens=[1, 2])
    monkeypatch.setattr(analysis.vision.relevance, "EXPLAINED_TOKENS", 10)
    with pytest.raises(HeadscopeError, match="10 are the most"):
        explain(subject, prompt)
