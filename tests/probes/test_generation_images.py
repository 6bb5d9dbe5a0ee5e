"""Pictures through the Tap and through generation, held against the models' own forward and generate."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from probes.batch import collate, forward
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.generation import generate
from probes.image_prompt import ImagePrompt, continued, image_prompt, without_image
from probes.plan import LayerPlan, Plan
from probes.plan_parts import Positions, SpanWeight
from probes.prompt import Prompt
from probes.subject import Subject, load
from probes.tap import Tap
from tests.probes.families import FAMILIES, folder_of

Loaded = Callable[[str], Subject]
SIZES = [(40, 24), (24, 40)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    known: dict[str, Subject] = {}

    def one(family: str) -> Subject:
        if family not in known:
            folder = folder_of(family, tmp_path_factory.mktemp(family))
            known[family] = load(str(folder), device="cpu", dtype="float32")
            known[family].model.generation_config.eos_token_id = None  # so that all answers have full length
            known[family].__dict__["stop_tokens"] = frozenset()
        return known[family]

    return one


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def prompts_of(subject: Subject) -> list[ImagePrompt]:
    questions = ["What is it?", "Is there a cat in the picture?"]
    return [image_prompt(subject, picture(*size, i), questions[i]) for i, size in enumerate(SIZES)]


def own_inputs(subject: Subject, prompt: ImagePrompt) -> dict[str, Tensor]:
    """What the model's own generate takes, marks of the image tokens as the processor makes them."""
    marks = (prompt.ids == subject.anatomy.image_token).long()[None]
    named = {"qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}
    name = named.get(subject.model.config.model_type)
    return {"input_ids": prompt.ids[None], **prompt.inputs, **({name: marks} if name else {})}


def own_answer(subject: Subject, prompt: ImagePrompt, new_tokens: int) -> list[int]:
    given = own_inputs(subject, prompt)
    out = subject.model.generate(
        **given, attention_mask=torch.ones_like(given["input_ids"]), do_sample=False, max_new_tokens=new_tokens
    )
    return out[0, len(prompt) :].tolist()


class Seen:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, str, int]] = []

    def read(self, call: AttentionCall) -> None:
        self.calls.append((call.layer.stack, call.layer.index, call.phase, call.q.shape[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tap_leaves_the_logits_as_they_are_and_keeps_tower_and_decoder_apart(loaded: Loaded, family: str) -> None:
    subject, seen = loaded(family), Seen()
    [prompt, _] = prompts_of(subject)
    with torch.inference_mode():
        own = subject.model(**own_inputs(subject, prompt)).logits
        with Tap(subject, readers=[seen], plan=Plan()):
            tapped = forward(subject, collate(subject, [prompt])).logits
    assert (own - tapped).abs().max() <= 1e-5 * own.abs().max()
    decoder = [(index, phase) for stack, index, phase, _ in seen.calls if not stack]
    assert decoder == [(0, "prefill"), (1, "prefill")]
    assert {index for stack, index, _, _ in seen.calls if stack == "vision"} >= {0}
    assert subject.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_pictures_gives_the_logits_of_each_alone(loaded: Loaded, family: str) -> None:
    subject = loaded(family)
    prompts: list[Prompt] = [*prompts_of(subject), without_image(prompts_of(subject)[0])]
    with torch.inference_mode():
        batch = collate(subject, prompts)
        together = forward(subject, batch).logits
        for row, prompt in enumerate(prompts):
            alone = forward(subject, collate(subject, [prompt])).logits[0]
            own = together[row, int(batch.padding[row]) :]
            assert (own - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_the_models_own_generate(loaded: Loaded, family: str) -> None:
    subject = loaded(family)
    prompts = prompts_of(subject)
    own = [own_answer(subject, prompt, 6) for prompt in prompts]
    assert len({tuple(answer) for answer in own}) > 1
    assert generate(subject, prompts, new_tokens=6) == own
    assert generate(subject, prompts[1:], new_tokens=6) == own[1:]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_a_text_is_answered_the_same_after_a_picture_was_seen(loaded: Loaded, family: str) -> None:
    subject = loaded(family)
    [prompt, _] = prompts_of(subject)
    text = without_image(prompt)
    generate(subject, [prompt], new_tokens=2)
    again = generate(subject, [text], new_tokens=6)
    own = subject.model.generate(
        text.ids[None], attention_mask=torch.ones(1, len(text), dtype=torch.long), do_sample=False, max_new_tokens=6
    )
    assert again == own[:, len(text) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_continued_as_a_prompt_is_answered_like_the_decode_went_on(loaded: Loaded, family: str) -> None:
    subject = loaded(family)
    [prompt, _] = prompts_of(subject)
    [whole] = generate(subject, [prompt], new_tokens=6)
    longer = continued(prompt, whole[:3])
    assert isinstance(longer, ImagePrompt)
    assert longer.spans["generated"] == tuple(range(len(prompt), len(prompt) + 3))
    assert generate(subject, [longer], new_tokens=3) == [whole[3:]]


class AgainstText:
    """PAI's half that works on logits, with the strength made large so that it matters."""

    def __init__(self, reader: Any = None) -> None:
        self.readers = [reader] if reader is not None else []

    def streams(self, prompts: Sequence[ImagePrompt]) -> list[list[Prompt]]:
        return [[without_image(prompt) for prompt in prompts]]

    def combine(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
        [text] = others
        return 3 * (logits.log_softmax(-1) - text.log_softmax(-1)) + text.log_softmax(-1)


def two_passes(subject: Subject, prompt: ImagePrompt, new_tokens: int, plan: Plan) -> list[int]:
    """The same without a cache: both prompts run anew for every token."""
    answer: list[int] = []
    for _ in range(new_tokens):
        with torch.inference_mode():
            with Tap(subject, plan=plan):
                main = forward(subject, collate(subject, [continued(prompt, answer)])).logits[:, -1]
            text = forward(subject, collate(subject, [continued(without_image(prompt), answer)])).logits[:, -1]
        answer.append(int(AgainstText().combine(main, [text]).argmax()))
    return answer


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_contrastive_decoding_is_two_passes_for_each_token_and_the_plan_reaches_the_main_one_alone(
    loaded: Loaded, family: str
) -> None:
    subject, seen = loaded(family), Seen()
    prompts = prompts_of(subject)
    plain = Plan()
    assert generate(subject, prompts, new_tokens=4, contrast=AgainstText(seen)) == [
        two_passes(subject, prompt, 4, plain) for prompt in prompts
    ]
    assert {rows for stack, _, _, rows in seen.calls if not stack} == {4}
    everything = Positions(torch.zeros(1, 0, dtype=torch.bool), beyond=True)
    first = Positions(torch.ones(1, 1, dtype=torch.bool))
    layer = LayerPlan(
        weights=(SpanWeight(first, everything, torch.full((1, 4), 30.0)),), output_scale=torch.full((1, 4), 2.0)
    )
    plan = Plan({0: layer}, {0: layer})
    changed = [two_passes(subject, prompt, 4, plan) for prompt in prompts]
    assert changed != [two_passes(subject, prompt, 4, plain) for prompt in prompts]
    assert generate(subject, prompts, new_tokens=4, contrast=AgainstText(), plan=plan) == changed
    assert generate(subject, prompts, new_tokens=4, contrast=AgainstText(), plan=Plan.stack([plan, plan])) == changed


def test_a_contrast_without_streams_changes_the_main_ones_logits(loaded: Loaded) -> None:
    class Least:
        readers = ()

        def streams(self, prompts: Sequence[Any]) -> list[list[Prompt]]:
            return []

        def combine(self, logits: Tensor, others: Sequence[Tensor]) -> Tensor:
            assert others == []
            return -logits

    subject = loaded("llava")
    prompts = prompts_of(subject)
    logits = [forward(subject, collate(subject, [prompt])).logits[0, -1] for prompt in prompts]
    answers = generate(subject, prompts, new_tokens=1, contrast=Least())
    assert answers == [[int(one.argmin())] for one in logits]


def test_a_stream_that_is_too_short_is_refused(loaded: Loaded) -> None:
    class Short(AgainstText):
        def streams(self, prompts: Sequence[ImagePrompt]) -> list[list[Prompt]]:
            return [[without_image(prompts[0])]]

    subject = loaded("llava")
    with pytest.raises(HeadscopeError, match="needs 2 prompts"):
        generate(subject, prompts_of(subject), new_tokens=1, contrast=Short())
