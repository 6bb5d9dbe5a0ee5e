"""VHR: heads chosen layer by layer on reinforced activations, and the same ones at every step."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from xarray import DataArray

from analysis.vision import divergence
from analysis.vision.draws import random_heads
from analysis.vision.reinforcement import (
    Vhr,
    above_median,
    head_divergence,
    paper_layers,
    reinforced_heads,
    reinforcement_plan,
    without_outliers,
)
from probes.activations import on_activation
from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.generation import generate
from probes.image_prompt import ImagePrompt, without_image
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap
from tests.analysis.vision.deep_llava import LAYERS, deep_llava


@pytest.fixture
def subject() -> Subject:
    return deep_llava()


@pytest.fixture
def prompts(subject: Subject, picture_prompt: Any) -> list[ImagePrompt]:
    return [picture_prompt(subject, before, behind) for before, behind in ((3, 4), (1, 2), (2, 6))]


def said(subject: Subject, prompt: Prompt, factors: dict[int, Tensor]) -> list[Tensor]:
    """What every layer's heads say at the last position of one prompt, (head, d), each layer scaled by (head,)."""
    caught: list[Tensor] = []

    def hook(index: int) -> Callable[[Tensor], Tensor]:
        def see(x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (subject.anatomy.query_heads, -1))
            caught.append(heads[0, -1])
            return (heads * factors.get(index, torch.ones(1))[:, None]).flatten(2)

        return see

    hooks = [on_activation(subject, layer, "heads", hook(layer.index)) for layer in subject.anatomy.decoder]
    with torch.inference_mode():
        forward(subject, collate(subject, [prompt]))
    for handle in hooks:
        handle.remove()
    return caught


def chosen_one_by_one(
    subject: Subject, prompt: ImagePrompt, layers: Sequence[int], *, alpha: float, outliers: bool, both: bool
) -> Tensor:
    """Algorithm 1 written out: two whole passes for every layer, on activations reinforced so far."""
    factors: dict[int, Tensor] = {}
    chosen = torch.zeros(subject.anatomy.layers, subject.anatomy.query_heads, dtype=torch.bool)
    for layer in layers:
        seen = said(subject, prompt, factors)[layer]
        unseen = said(subject, without_image(prompt), factors if both else {})[layer]
        gap, text = (seen - unseen).norm(dim=-1), unseen.norm(dim=-1) ** 2
        if outliers:
            outlying = (gap > gap.mean() + gap.std(unbiased=False)) & (text > text.mean() + text.std(unbiased=False))
            gap[outlying] = 0
        chosen[layer] = gap > gap.sort().values[(len(gap) - 1) // 2]
        factors[layer] = torch.where(chosen[layer], alpha, 1.0)
    return chosen


@pytest.mark.parametrize(("outliers", "both"), [(True, True), (False, False)])
def test_heads_are_those_of_the_algorithm_written_out_prompt_by_prompt(
    subject: Subject, prompts: list[ImagePrompt], outliers: bool, both: bool
) -> None:
    layers = (1, 3, 4, 5, 6, 7)
    together = reinforced_heads(subject, prompts, layers, alpha=3.0, outliers=outliers, both_streams=both)
    for row, prompt in zip(together, prompts, strict=True):
        alone = chosen_one_by_one(subject, prompt, layers, alpha=3.0, outliers=outliers, both=both)
        assert torch.equal(row, alone)
    at_once = torch.stack([above_median(x) for x in head_divergence(subject, prompts).unbind(1)], 1)
    assert not torch.equal(together[:, list(layers)], at_once[:, list(layers)])  # reinforcing changes what follows


def test_the_divergence_at_the_prompts_end_is_that_of_a_captions_first_token(
    subject: Subject, prompts: list[ImagePrompt]
) -> None:
    own = divergence.divergence(subject, prompts, [[5]] * len(prompts))["divergence"]
    assert torch.allclose(head_divergence(subject, prompts), torch.from_numpy(own.values), atol=1e-5)


def test_outliers_are_those_of_equation_six() -> None:
    values, text = torch.rand(20, 9) ** 4, torch.rand(20, 9) ** 4
    arrays = [DataArray(x.double().numpy(), dims=("token", "head")) for x in (values, text)]
    expected = torch.from_numpy(divergence.without_outliers(*arrays).values)
    assert 0 < int((expected == 0).sum()) < expected.numel()
    assert torch.equal(without_outliers(values, text) == 0, expected == 0)


@pytest.mark.parametrize("heads", [4, 5])
def test_exactly_half_of_the_heads_are_above_the_median_rounded_down(heads: int, picture_prompt: Any) -> None:
    subject = deep_llava(heads=heads)
    prompts = [picture_prompt(subject, 2, 3), picture_prompt(subject, 1, 5)]
    layers = paper_layers(LAYERS)
    counts = reinforced_heads(subject, prompts, layers, outliers=False).sum(-1)
    assert counts[:, list(layers)].unique().tolist() == [heads // 2]
    assert int(counts.sum()) == 2 * len(layers) * (heads // 2)
    assert above_median(torch.tensor([[0.0, 0, 0, 1]])).tolist() == [[False, False, False, True]]


def test_the_papers_layers_are_the_second_and_the_last_fourteen_of_thirty_two() -> None:
    assert paper_layers(32) == (1, *range(18, 32))
    assert paper_layers(30) == (1, *range(17, 30))
    assert paper_layers(2) == (1,)
    assert paper_layers(1) == (0,)


def test_a_factor_of_one_leaves_the_logits_as_they_are_and_another_does_not(
    subject: Subject, prompts: list[ImagePrompt]
) -> None:
    with torch.inference_mode():
        own = forward(subject, collate(subject, prompts)).logits
        for alpha in (1.0, 2.0):
            with Tap(subject, plan=Vhr(alpha=alpha).prepare(subject, prompts).plan):
                changed = forward(subject, collate(subject, prompts)).logits
            assert torch.equal(changed, own) == (alpha == 1)


def test_every_step_reinforces_the_heads_that_the_prompt_chose(subject: Subject, prompts: list[ImagePrompt]) -> None:
    plan = Vhr().prepare(subject, prompts).plan
    assert plan is not None
    assert plan.prefill == plan.decode
    scales: dict[int, list[Tensor]] = {}

    class Outputs:
        activations = ("heads",)
        plain: dict[int, Tensor]

        def read(self, call: Any) -> None:
            self.own = call.output[:, :, -1]

        def read_activation(self, layer: Any, name: str, x: Tensor) -> None:
            ratio = x[:, -1].unflatten(-1, (4, -1)).norm(dim=-1) / self.own.norm(dim=-1)
            scales.setdefault(layer.index, []).append(ratio)

    generate(subject, prompts, new_tokens=4, plan=plan, readers=[Outputs()])
    for layer, seen in scales.items():
        step = plan.decode.get(layer)
        expected = torch.ones(3, 4) if step is None or step.output_scale is None else step.output_scale
        assert len(seen) == 4
        assert all(torch.allclose(each, expected, atol=1e-5) for each in seen)


def test_a_louder_head_turns_the_stream_towards_what_it_says() -> None:
    """Their proposition 1: one head's share grows in the sum of stream and head, strictly."""
    said_by_head, rest = torch.randn(16), torch.randn(16)
    angles = [float(cosine_similarity(rest + alpha * said_by_head, said_by_head, dim=0)) for alpha in (0.5, 1, 2, 3, 4)]
    assert angles == sorted(angles)
    subject = deep_llava()
    layer = subject.anatomy.decoder[3]
    weight = layer.output_weight()[2]
    stream: list[Tensor] = []
    handle = on_activation(subject, layer, "attention", lambda x: stream.append(x[0, -1]))
    found = []
    chosen = torch.zeros(1, LAYERS, 4, dtype=torch.bool)
    chosen[0, 3, 2] = True
    prompt = torch.randint(3, 90, (9,))
    own = said(subject, Prompt(prompt, "", ((0, 0),) * 9, {}), {})[3][2] @ weight
    stream.clear()
    for alpha in (0.5, 1.0, 2.0, 4.0):
        with torch.inference_mode(), Tap(subject, plan=reinforcement_plan(chosen, alpha=alpha)):
            forward(subject, collate(subject, [prompt]))
        found.append(float(cosine_similarity(stream[-1], own, dim=0)))
    handle.remove()
    assert found == sorted(found)
    assert found[0] < found[-1] - 1e-3


def test_a_plan_has_the_row_of_each_prompt_as_it_would_be_alone(subject: Subject, prompts: list[ImagePrompt]) -> None:
    for preset in (Vhr(), Vhr(heads="random"), Vhr(heads="L1H0+L5H3")):
        together = preset.chosen(subject, prompts, seed=3)
        alone = torch.cat([preset.chosen(subject, [prompt], seed=3) for prompt in prompts])
        assert torch.equal(together, alone)


def test_the_random_control_has_as_many_heads_in_each_layer_and_another_draw_by_seed_and_prompt(
    subject: Subject, prompts: list[ImagePrompt]
) -> None:
    control = Vhr().control
    assert isinstance(control, Vhr)
    assert control.control is None
    own, drawn = Vhr().chosen(subject, prompts), control.chosen(subject, prompts, seed=1)
    assert torch.equal(own.sum(-1), drawn.sum(-1))
    assert not torch.equal(own, drawn)
    assert not torch.equal(drawn, control.chosen(subject, prompts, seed=2))
    assert not torch.equal(drawn[0], drawn[1])
    every = torch.ones(3, 2, 4, dtype=torch.bool)
    assert random_heads(every, prompts, 0).all()


def test_fixed_heads_are_the_same_for_every_prompt(subject: Subject, prompts: list[ImagePrompt]) -> None:
    chosen = Vhr(heads="L1H0+L5H3").chosen(subject, prompts)
    assert chosen.nonzero().tolist() == [[row, layer, head] for row in range(3) for layer, head in ((1, 0), (5, 3))]
    with pytest.raises(HeadscopeError, match="L9H0 does not exist"):
        Vhr(heads="L9H0").prepare(subject, prompts)
    with pytest.raises(HeadscopeError, match="alpha: -1 is negative"):
        Vhr(alpha=-1)
    with pytest.raises(HeadscopeError, match="layers: '9'"):
        Vhr(layers="1+9").prepare(subject, prompts)
