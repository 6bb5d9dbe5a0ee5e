"""VAR's two forms, and mass moved from the first token to the image, in the attention that results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.vision.preset import Preset
from analysis.vision.redistribution import SinkToImage, Var, found_sinks, redistribution_plan, sink_dimensions
from probes.batch import collate, forward
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.generation import generate
from probes.image_prompt import ImagePrompt
from probes.plan import Plan
from probes.subject import Subject
from probes.tap import Tap
from tests.analysis.vision.deep_llava import LAYERS, deep_llava
from tests.analysis.vision.test_visual_sinks import FIRST, MASSIVE, PLANTED, plant

TAU = 2.5  # within reach of a stream of 32 coordinates


@pytest.fixture
def subject() -> Subject:
    subject = deep_llava()
    with torch.no_grad():
        plant(subject)
    return subject


@pytest.fixture
def prompts(subject: Subject, picture_prompt: Any) -> list[ImagePrompt]:
    made = [picture_prompt(subject, before, behind) for before, behind in ((3, 4), (1, 2))]
    for prompt in made:
        prompt.ids[0] = FIRST
    return made


def logits(subject: Subject, prompts: Sequence[ImagePrompt], plan: Plan | None) -> Tensor:
    with torch.inference_mode(), Tap(subject, plan=plan):
        return forward(subject, collate(subject, prompts)).logits


def plan_of(preset: Preset, subject: Subject, prompts: Sequence[ImagePrompt], seed: int = 0) -> Plan:
    plan = preset.prepare(subject, prompts, seed=seed).plan
    assert plan is not None
    return plan


def test_the_planted_sinks_are_found_by_the_first_token_alone(subject: Subject, prompts: list[ImagePrompt]) -> None:
    assert MASSIVE in sink_dimensions(subject, prompts, threshold=TAU)
    for sinks, prompt in zip(found_sinks(subject, prompts, dimensions=[MASSIVE], threshold=TAU), prompts, strict=True):
        assert sinks.shape == (LAYERS, len(prompt))
        assert sinks[0].nonzero()[0].tolist() == [0, prompt.spans["image"][PLANTED]]


def test_the_paper_spares_the_last_layer_and_gives_p_of_every_sink(
    subject: Subject, prompts: list[ImagePrompt]
) -> None:
    plan = plan_of(Var(p=0.7, ratio=0.8, floor=0.1, tau=TAU, dimensions=str(MASSIVE)), subject, prompts)
    assert plan.prefill == plan.decode
    assert 0 in plan.prefill
    assert LAYERS - 1 not in plan.prefill
    [change] = plan.prefill[0].redistributions
    assert (change.give, change.ratio, change.floor, change.shuffle) == (0.7, 0.8, 0.1, None)
    assert change.sinks.table[0].nonzero()[:, 0].tolist() == [0, 3 + PLANTED]
    assert change.sinks.table[1].nonzero()[:, 0].tolist() == [0, 1 + PLANTED]
    behind = change.queries.holds(torch.arange(40).expand(2, -1))
    assert [row.nonzero()[0].item() for row in behind] == [19, 17]
    assert bool(behind[:, 19:].all())


def test_the_released_form_keeps_p_turns_rho_around_and_spares_the_first_two_layers(
    subject: Subject, prompts: list[ImagePrompt]
) -> None:
    own = Var(form="released", p=0.6, ratio=0.2, tau=TAU, dimensions=str(MASSIVE))
    plan = plan_of(own, subject, prompts)
    sinks = found_sinks(subject, prompts, dimensions=[MASSIVE], threshold=TAU, above=True)
    at = {
        layer
        for layer in range(2, LAYERS)
        if any(each[layer, list(prompt.spans["image"])].any() for each, prompt in zip(sinks, prompts, strict=True))
    }
    assert {*plan.prefill} == at
    for step in plan.prefill.values():
        [change] = step.redistributions
        assert (change.give, change.ratio) == (1 - 0.6, 1 - 0.2)


def test_a_prompt_without_a_sink_in_the_image_is_left_alone_by_the_released_form_only(
    subject: Subject, prompts: list[ImagePrompt]
) -> None:
    sinks = [np.zeros((LAYERS, len(prompt)), dtype=bool) for prompt in prompts]
    for each in sinks:
        each[:, 0] = True
    sinks[0][:, 5] = True  # in the image of the first prompt alone
    given: dict[str, Any] = {"give": 0.6, "ratio": 0.0, "floor": 0.0, "layers": range(LAYERS)}
    own = logits(subject, prompts, None)
    for needed in (True, False):
        plan = redistribution_plan(subject, prompts, sinks, **given, visual_needed=needed)
        changed = logits(subject, prompts, plan)
        assert not torch.allclose(changed[0], own[0], atol=1e-3)
        assert torch.allclose(changed[1], own[1], atol=1e-5) == needed
    for each in sinks:
        each[:] = False
    assert redistribution_plan(subject, prompts, sinks, **given).prefill == {}


def test_nothing_changes_where_nothing_is_given(subject: Subject, prompts: list[ImagePrompt]) -> None:
    own = logits(subject, prompts, None)
    assert torch.allclose(logits(subject, prompts, plan_of(SinkToImage(0.0, floor=0.0), subject, prompts)), own)
    assert not torch.allclose(logits(subject, prompts, plan_of(SinkToImage(0.5, floor=0.0), subject, prompts)), own)


def test_the_first_token_hands_its_share_to_the_image_in_rows_that_look_at_it(
    subject: Subject, prompts: list[ImagePrompt]
) -> None:
    """The first changed layer's output, against weights that are changed by hand."""
    floor, share = 0.3, 0.25
    plan = plan_of(SinkToImage(share, floor=floor), subject, prompts)
    found: list[tuple[Tensor, Tensor]] = []

    class First:
        def read(self, call: AttentionCall) -> None:
            if not call.layer.stack and call.layer.index == 0:
                found.append((call.pattern(), call.v.repeat_interleave(call.layer.group_size, dim=1)))

    spoken: list[Tensor] = []
    projection = subject.anatomy.decoder[0].output_projection()
    handle = projection.register_forward_pre_hook(lambda _, args: spoken.append(args[0]))
    with torch.inference_mode(), Tap(subject, readers=[First()], plan=plan):
        forward(subject, collate(subject, prompts))
    handle.remove()
    [(p, v)] = [(p.clone(), v) for p, v in found]
    n = p.shape[-1]
    touched = 0
    for row, prompt in enumerate(prompts):
        padding = n - len(prompt)
        image = [padding + place for place in prompt.spans["image"]]
        for query in range(image[-1] + 1, n):
            for head in range(4):
                weights = p[row, head, query]
                mass = weights[image].sum()
                if mass >= floor:
                    touched += 1
                    weights[image] *= 1 + share * weights[padding] / mass
                    weights[padding] *= 1 - share
                    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert 0 < touched < 4 * 6
    expected = (p @ v).transpose(1, 2).flatten(2)
    for row, prompt in enumerate(prompts):
        own = slice(n - len(prompt), None)
        assert torch.allclose(spoken[0][row, own], expected[row, own], atol=1e-5)


def test_rows_of_a_batch_are_those_of_each_prompt_alone(subject: Subject, prompts: list[ImagePrompt]) -> None:
    dimensions = str(MASSIVE)
    for preset in (
        Var(floor=0.0, ratio=0.0, tau=TAU, dimensions=dimensions),
        Var(form="released", floor=0.0, ratio=1.0, tau=TAU, dimensions=dimensions, heads="random"),
        SinkToImage(0.6, floor=0.1),
        SinkToImage(0.6, floor=0.1, heads="random"),
    ):
        together = logits(subject, prompts, plan_of(preset, subject, prompts))
        for row, prompt in enumerate(prompts):
            alone = logits(subject, [prompt], plan_of(preset, subject, [prompt]))[0]
            assert torch.allclose(together[row, -len(prompt) :], alone, atol=2e-4)
        answers = generate(subject, prompts, new_tokens=3, plan=plan_of(preset, subject, prompts))
        for answer, prompt in zip(answers, prompts, strict=True):
            assert [answer] == generate(subject, [prompt], new_tokens=3, plan=plan_of(preset, subject, [prompt]))


def test_the_control_changes_as_many_rows_of_other_heads(subject: Subject, prompts: list[ImagePrompt]) -> None:
    own = SinkToImage(0.5, floor=0.45)
    counts = {}
    for preset in (own, own.control):
        assert isinstance(preset, SinkToImage)
        plan = plan_of(preset, subject, prompts, seed=4)
        first = Plan({0: plan.prefill[0]}, {})
        changed = logits(subject, prompts, first)
        counts[preset.heads] = (int(first.report.image_centric), changed)
    assert counts["vision"][0] == counts["random"][0] > 0
    assert not torch.allclose(counts["vision"][1], counts["random"][1], atol=1e-3)


def test_found_sinks_of_the_text_may_give_instead_of_the_first_token(
    subject: Subject, prompts: list[ImagePrompt]
) -> None:
    plan = plan_of(SinkToImage(0.5, sinks="found", tau=TAU), subject, prompts)
    for step in plan.prefill.values():
        sinks = step.redistributions[0].sinks.table
        for row, prompt in zip(sinks, prompts, strict=True):
            assert not row[list(prompt.spans["image"])].any()


def test_what_can_not_be_is_refused_in_a_sentence(subject: Subject, prompts: list[ImagePrompt]) -> None:
    with pytest.raises(HeadscopeError, match="form: 'official' is none of paper, released"):
        Var(form="official")
    with pytest.raises(HeadscopeError, match=r"p: 1.5 is outside 0 to 1"):
        Var(p=1.5)
    with pytest.raises(HeadscopeError, match="dimensions: 'most' is neither"):
        Var(dimensions="most")
    with pytest.raises(HeadscopeError, match="choose a threshold below"):
        Var().prepare(subject, prompts)
    with pytest.raises(HeadscopeError, match="choose a lower tau"):
        sink_dimensions(deep_llava(), prompts, threshold=5.6)
