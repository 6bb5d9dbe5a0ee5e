"""Contrastive decoding against its formulas computed by hand, one token at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from analysis.vision.contrasts import EarlyExits, NoisyPicture, TextOnly, divergence, exits, kept_signal, plausible
from probes.batch import collate, forward
from probes.contrast import Contrast
from probes.errors import HeadscopeError
from probes.generation import generate
from probes.image_prompt import ImagePrompt, continued, without_image
from probes.prompt import Prompt
from probes.subject import Subject
from tests.analysis.vision.deep_llava import deep_llava

NEW = 4


@pytest.fixture
def subject() -> Subject:
    return deep_llava()


@pytest.fixture
def prompts(subject: Subject, picture_prompt: Any) -> list[ImagePrompt]:
    return [picture_prompt(subject, before, behind) for before, behind in ((3, 4), (1, 2), (2, 6))]


@torch.inference_mode()
def newest(subject: Subject, prompt: Prompt, answer: Sequence[int], **more: Any) -> Any:
    """A whole forward of prompt and answer."""
    return forward(subject, collate(subject, [continued(prompt, answer)]), **more)


def answers_by(score: Any, subject: Subject, prompts: Sequence[ImagePrompt]) -> list[list[int]]:
    found = []
    for prompt in prompts:
        answer: list[int] = []
        for _ in range(NEW):
            answer.append(int(score(prompt, answer).argmax()))
        found.append(answer)
    return found


def cut(values: Tensor, own: Tensor, cutoff: float = 0.1) -> Tensor:
    p = own.softmax(-1)
    return torch.where(p < cutoff * p.max(), -torch.inf, values)


def check(contrast: Contrast, score: Any, subject: Subject, prompts: Sequence[ImagePrompt]) -> None:
    found = generate(subject, prompts, new_tokens=NEW, contrast=contrast)
    assert found == answers_by(score, subject, prompts)
    assert found != generate(subject, prompts, new_tokens=NEW)


def test_the_text_only_contrast_is_two_passes_for_each_token(subject: Subject, prompts: list[ImagePrompt]) -> None:
    def score(prompt: ImagePrompt, answer: list[int]) -> Tensor:
        own = newest(subject, prompt, answer).logits[0, -1]
        text = newest(subject, without_image(prompt), answer).logits[0, -1]
        c, u = own.log_softmax(-1), text.log_softmax(-1)
        return cut(3 * (c - u) + u, own)

    check(TextOnly(gamma=3), score, subject, prompts)


def test_a_gamma_of_one_gives_the_models_own_order() -> None:
    logits, others = torch.randn(2, 9), [torch.randn(2, 9)]
    combined = TextOnly(gamma=1).combine(logits, others)
    kept = combined.isfinite()
    assert torch.allclose(combined[kept], logits.log_softmax(-1)[kept], atol=1e-6)


def test_vcd_is_two_passes_for_each_token_of_which_one_sees_noise(subject: Subject, prompts: list[ImagePrompt]) -> None:
    contrast = NoisyPicture(step=900, alpha=2.0, seed=5)

    def score(prompt: ImagePrompt, answer: list[int]) -> Tensor:
        own = newest(subject, prompt, answer).logits[0, -1]
        return cut(3 * own - 2 * newest(subject, contrast.noisy(prompt), answer).logits[0, -1], own)

    check(contrast, score, subject, prompts)


def test_noise_is_that_of_the_diffusion_and_the_same_in_any_batch(prompts: list[ImagePrompt]) -> None:
    kept = kept_signal()
    steps = np.linspace(-6, 6, 1000)
    beta = 1 / (1 + np.exp(-steps)) * (5e-3 - 1e-5) + 1e-5
    assert np.allclose(kept, np.cumprod(1 - beta), atol=1e-5)
    big = ImagePrompt(**{**vars(prompts[0]), "inputs": {"pixel_values": torch.full((1, 3, 200, 200), 4.0)}})
    for step in (0, 500, 999):
        noisy = NoisyPicture(step=step).noisy(big).inputs["pixel_values"]
        assert float(noisy.mean()) == pytest.approx(4 * float(kept[step]) ** 0.5, abs=0.02)
        assert float(noisy.std()) == pytest.approx((1 - float(kept[step])) ** 0.5, abs=0.02)
    contrast = NoisyPicture()
    [together] = contrast.streams(prompts)
    for one, prompt in zip(together, prompts, strict=True):
        [[alone]] = contrast.streams([prompt])
        assert torch.equal(one.inputs["pixel_values"], alone.inputs["pixel_values"])
        assert not torch.equal(one.inputs["pixel_values"], NoisyPicture(seed=1).noisy(prompt).inputs["pixel_values"])
    with pytest.raises(HeadscopeError, match="no pixel_values"):
        contrast.noisy(ImagePrompt(**{**vars(prompts[0]), "inputs": {}}))


@pytest.mark.parametrize("norm", [True, False])
def test_dola_subtracts_the_exit_that_differs_most(subject: Subject, prompts: list[ImagePrompt], norm: bool) -> None:
    model: Any = subject.model

    def score(prompt: ImagePrompt, answer: list[int]) -> Tensor:
        out = newest(subject, prompt, answer, output_hidden_states=True)
        mature = out.logits[0, -1]
        scores, gaps = [], []
        for blocks in (4, 6):  # of 8
            hidden = out.hidden_states[blocks][0, -1]
            early = model.lm_head(model.model.language_model.norm(hidden) if norm else hidden)
            scores.append(mature.log_softmax(-1) - early.log_softmax(-1))
            gaps.append(jensenshannon(mature.softmax(-1), early.softmax(-1)) ** 2)
        return cut(scores[int(np.argmax(gaps))], mature)

    check(EarlyExits(subject, norm=norm), score, subject, prompts)


def test_exits_are_the_even_ones_of_the_upper_half() -> None:
    assert exits(32) == tuple(range(16, 32, 2))
    assert exits(30) == tuple(range(16, 30, 2))
    assert exits(2) == (1,)


def test_the_divergence_is_jensen_shannon_of_each_exit_and_row() -> None:
    early, mature = torch.randn(3, 2, 7).log_softmax(-1), (6 * torch.randn(2, 7)).log_softmax(-1)
    found = divergence(early, mature)
    for i in range(3):
        for row in range(2):
            own = jensenshannon(early[i, row].exp(), mature[row].exp()) ** 2
            assert float(found[i, row]) == pytest.approx(own, abs=1e-5)


def test_implausible_tokens_are_never_chosen() -> None:
    logits = torch.tensor([[0.0, -2.2, -2.4, -9.0]])  # log 0.1 is -2.303
    assert plausible(torch.ones(1, 4), logits, 0.1).tolist() == [[1, 1, -torch.inf, -torch.inf]]
