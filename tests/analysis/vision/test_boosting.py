"""Boosts of the image: which layers, rows and heads they reach, and PAINT's choice of image tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.vision.boosting import BoostImage, Devils, Pai, Paint, Vaf, image_mass
from analysis.vision.depth import named, scaled
from analysis.vision.preset import Preset
from analysis.vision.token_selection import selected_tokens
from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.generation import generate
from probes.image_prompt import ImagePrompt, continued
from probes.plan import Plan
from probes.subject import Subject
from probes.tap import Tap
from tests.analysis.vision.deep_llava import LAYERS, deep_llava
from tests.conftest import eager

BOTH = [
    Pai(gamma=1), Devils(), Vaf(), Paint(), Paint(modulation="divergence"), Paint(modulation="mass", heads="random"),
    BoostImage(2.0), BoostImage(3.0, top=5, scores=np.arange(32.0).reshape(8, 4)),
]  # fmt: skip


@pytest.fixture
def subject() -> Subject:
    return deep_llava()


@pytest.fixture
def prompts(subject: Subject, picture_prompt: Any) -> list[ImagePrompt]:
    return [picture_prompt(subject, before, behind) for before, behind in ((3, 4), (1, 2))]


def outputs(subject: Subject, prompts: Sequence[ImagePrompt], plan: Plan | None, layer: int) -> Tensor:
    """What one layer's attention puts out, (b, n, hidden)."""
    found: list[Tensor] = []
    handle = subject.anatomy.decoder[layer].output_projection().register_forward_hook(lambda *x: found.append(x[2]))
    with torch.inference_mode(), Tap(subject, plan=plan):
        forward(subject, collate(subject, prompts))
    handle.remove()
    return found[0]


def plan_of(preset: Preset, subject: Subject, prompts: Sequence[ImagePrompt], seed: int = 0) -> Plan:
    plan = preset.prepare(subject, prompts, seed=seed).plan
    assert plan is not None
    return plan


def test_layers_of_thirty_two_are_the_same_depth_of_another_model() -> None:
    assert scaled(32, range(2, 32)) == range(2, 32)
    assert scaled(30, range(5, 18)) == range(5, 17)
    assert scaled(2, range(9, 15)) == range(1, 2)
    assert scaled(1, range(9, 15)) == range(0, 1)
    assert named("1+4-6", 8) == (1, 4, 5, 6)
    for wrong in ("8", "5-4", "x", ""):
        with pytest.raises(HeadscopeError, match="numbers from 0 to 7"):
            named(wrong, 8)


def test_each_method_reaches_the_layers_of_its_paper(subject: Subject, prompts: list[ImagePrompt]) -> None:
    assert sorted(plan_of(Pai(), subject, prompts).decode) == [0, 1, 2, 3, 4, 5, 6, 7]  # 2 of 32 rounds to 0 of 8
    assert sorted(plan_of(Devils(), subject, prompts).decode) == [1, 2, 3]
    assert sorted(plan_of(Vaf(), subject, prompts).prefill) == [2, 3]


@pytest.mark.parametrize("preset", [Pai(), Paint(), Devils()], ids=str)
def test_only_the_last_row_of_the_prompt_changes(preset: Preset, subject: Subject, prompts: list[ImagePrompt]) -> None:
    first = min(plan_of(preset, subject, prompts).prefill)
    plan = plan_of(preset, subject, prompts)
    alone = Plan({first: plan.prefill[first]}, {})
    own, changed = (outputs(subject, prompts, each, first) for each in (None, alone))
    assert torch.equal(own[:, :-1], changed[:, :-1])
    assert bool((own[:, -1] != changed[:, -1]).any(-1).all())


def test_an_own_image_factor_changes_the_rows_behind_the_image(subject: Subject, prompts: list[ImagePrompt]) -> None:
    own, changed = (
        outputs(subject, prompts, plan, 2)
        for plan in (None, Plan({2: plan_of(Vaf(), subject, prompts).prefill[2]}, {}))
    )
    behind = [-4, -2]
    for row, start in enumerate(behind):
        assert torch.allclose(own[row, :start], changed[row, :start], atol=1e-6)
        assert bool(((own - changed)[row, start:].abs().amax(-1) > 1e-5).all())


def test_pai_is_its_formula_in_the_logits_of_the_last_row(subject: Subject, prompts: list[ImagePrompt]) -> None:
    """The first layer's last row against softmax(s + alpha |s| on the image) v, with the model's own q and k."""
    alpha, layer = 0.6, subject.anatomy.decoder[0]
    plan = plan_of(Pai(alpha=alpha, gamma=1), subject, prompts[:1])
    seen: dict[str, Any] = {}

    class Call:
        def read(self, call: Any) -> None:
            if not call.layer.stack and call.layer.index == 0:
                k, v = (x.repeat_interleave(call.layer.group_size, 1) for x in (call.k, call.v))
                seen.update(q=call.q, k=k, v=v, scale=call.scale)

    said: list[Tensor] = []
    handle = layer.output_projection().register_forward_pre_hook(lambda _, args: said.append(args[0]))
    with torch.inference_mode(), Tap(subject, readers=[Call()], plan=plan):
        forward(subject, collate(subject, prompts[:1]))
    handle.remove()
    s = (seen["q"][0, :, -1:] @ seen["k"][0].transpose(1, 2)) * seen["scale"]
    image = list(prompts[0].spans["image"])
    s[..., image] += alpha * s[..., image].abs()
    expected = (s.softmax(-1) @ seen["v"][0])[:, 0].flatten()
    assert torch.allclose(said[0][0, -1], expected, atol=1e-5)


@pytest.mark.parametrize("preset", BOTH, ids=str)
def test_rows_of_a_batch_are_those_of_each_prompt_alone(
    preset: Preset, subject: Subject, prompts: list[ImagePrompt]
) -> None:
    together = plan_of(preset, subject, prompts)
    with torch.inference_mode(), Tap(subject, plan=together):
        logits = forward(subject, collate(subject, prompts)).logits[:, -1]
    own = torch.cat([forward(subject, collate(subject, [prompt])).logits[:, -1] for prompt in prompts])
    assert bool(((logits - own).abs().amax(-1) > 1e-4).all())
    for row, prompt in enumerate(prompts):
        plan = plan_of(preset, subject, [prompt])
        with torch.inference_mode(), Tap(subject, plan=plan):
            alone = forward(subject, collate(subject, [prompt])).logits[0, -1]
        assert torch.allclose(logits[row], alone, atol=1e-4)


def test_a_strength_of_nothing_is_no_plan_at_all(subject: Subject, prompts: list[ImagePrompt]) -> None:
    for preset in (Pai(alpha=0), Devils(strength=0), Vaf(image=1, system=1), BoostImage(1.0)):
        assert plan_of(preset, subject, prompts) == Plan()


def test_a_boost_acts_at_every_step(subject: Subject, prompts: list[ImagePrompt]) -> None:
    """What a decode step says is what a prefill of prompt and answer says at its end, boosted there alone."""
    plan = plan_of(Pai(alpha=0.8, gamma=1), subject, prompts[:1])
    answer = generate(subject, prompts[:1], new_tokens=2, plan=Plan({}, plan.decode))[0]
    again = continued(prompts[0], answer[:1])
    with torch.inference_mode(), Tap(subject, plan=Plan(plan_of(Pai(alpha=0.8), subject, [again]).prefill, {})):
        logits = forward(subject, collate(subject, [again])).logits[0, -1]
    assert int(logits.argmax()) == answer[1]


def test_chosen_tokens_are_those_of_the_class_tokens_attention(subject: Subject, prompts: list[ImagePrompt]) -> None:
    tower = subject.model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.inference_mode():
        pixels = torch.cat([prompt.inputs["pixel_values"] for prompt in prompts])
        maps = tower(pixels, output_attentions=True).attentions
    tower.set_attn_implementation("sdpa")
    for row, found in enumerate(selected_tokens(subject, prompts)):
        first, late = (maps[layer][row, :, 0, 1:].sum(0) for layer in (0, 2))
        low, high = np.percentile(late, [25, 75])
        summary = {i for i in range(16) if late[i] > high + 1.5 * (high - low)}
        local = {*first.argsort(descending=True)[:4].tolist()} - summary
        assert {*found.summary.nonzero()[:, 0].tolist()} == summary
        assert {*found.local.nonzero()[:, 0].tolist()} == local
        assert not (found.local & found.summary).any()


def test_a_tower_without_a_class_token_chooses_by_the_mean_over_its_patches(picture_prompt: Any) -> None:
    subject = deep_llava(class_token=False)
    prompts = [picture_prompt(subject, 2, 3), picture_prompt(subject, 1, 5)]
    tower = subject.model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.inference_mode():
        pixels = torch.cat([prompt.inputs["pixel_values"] for prompt in prompts])
        maps = tower(pixels, output_attentions=True).attentions
    tower.set_attn_implementation("sdpa")
    for row, found in enumerate(selected_tokens(subject, prompts)):
        largest = {*maps[0][row].sum(0).mean(0).argsort(descending=True)[:4].tolist()}
        assert {*found.local.nonzero()[:, 0].tolist()} == largest - {*found.summary.nonzero()[:, 0].tolist()}


def test_modulated_strengths_are_shares_of_the_layers_largest(subject: Subject, prompts: list[ImagePrompt]) -> None:
    shares = Paint(modulation="mass").shares(subject, prompts)
    mass = image_mass(subject, prompts)
    with torch.inference_mode(), eager(subject) as model:
        own = model(prompts[0].ids[None], **prompts[0].inputs, output_attentions=True).attentions
    by_hand = torch.stack([layer[0, :, -1, list(prompts[0].spans["image"])].sum(-1) for layer in own])
    assert torch.allclose(mass[0], by_hand, atol=1e-5)
    assert torch.allclose(shares, mass / mass.amax(-1, keepdim=True))
    drawn = Paint(modulation="mass", heads="random").shares(subject, prompts, seed=2)
    assert torch.equal(drawn.sort(-1).values, shares.sort(-1).values)
    assert not torch.equal(drawn, shares)


def test_a_top_few_are_those_with_the_largest_scores_and_the_control_others_of_their_layers(subject: Subject) -> None:
    scores = np.zeros((LAYERS, 4))
    scores[2, 1], scores[2, 3], scores[6, 0] = 3, 2, 1
    own = BoostImage(1.5, top=3, scores=scores)
    assert [str(head) for head in own.chosen(subject)] == ["L2H1", "L2H3", "L6H0"]
    assert isinstance(own.control, BoostImage)
    drawn = own.control.chosen(subject, seed=1)
    assert [head.layer for head in drawn] == [2, 2, 6]
    assert not {*drawn} & {*own.chosen(subject)}
    assert BoostImage(1.5).control is None
    with pytest.raises(HeadscopeError, match=r"boost\(1.5, top=3\) chooses heads by their scores"):
        BoostImage(1.5, top=3).chosen(subject)
    with pytest.raises(HeadscopeError, match="a score for each of 8 layers of 4 heads"):
        BoostImage(1.5, top=3, scores=scores[1:]).chosen(subject)
