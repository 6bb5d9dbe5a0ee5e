"""Rows of the map, as the model's own eager attention shows them, in batches padded on the left."""

from typing import Any

import pytest
import torch
from torch import Tensor

import probes.vision_reader
from probes.errors import HeadscopeError
from probes.subject import Subject
from probes.tap import Tap
from probes.vision_reader import VisionReader

PATCHES = 16
LENGTHS = (23, 20)  # of the two prompts, the image's tokens included
SPANS: list[dict[str, Any]] = [
    {"system": range(3), "image": range(3, 19), "question": range(19, 23)},
    {"system": range(1), "image": range(1, 17), "question": range(17, 20)},
]
ROWS = [[18, 22], [19]]


def image_batch(subject: Subject) -> dict[str, Tensor]:
    ids, seen = torch.zeros(2, 23, dtype=torch.long), torch.zeros(2, 23, dtype=torch.long)
    for i, (length, spans) in enumerate(zip(LENGTHS, SPANS, strict=True)):
        own = torch.randint(3, 90, (length,))
        own[list(spans["image"])] = subject.anatomy.image_token or 0
        ids[i, 23 - length :], seen[i, 23 - length :] = own, 1
    positions = (seen.cumsum(-1) - 1).clamp_min(0)
    return {
        "input_ids": ids,
        "attention_mask": seen,
        "position_ids": positions,
        "pixel_values": torch.randn(2, 3, 16, 16),
    }


def read(subject: Subject, inputs: dict[str, Tensor], **settings: Any) -> VisionReader:
    reader = VisionReader(ROWS, SPANS, **settings)
    with torch.inference_mode(), Tap(subject, readers=[reader]):
        subject.model(**inputs)
    return reader


def test_mass_and_maps_equal_the_eager_maps_under_left_padding(tiny: Any, own_attention: Any) -> None:
    subject = tiny("llava")
    inputs = image_batch(subject)
    reader = read(subject, inputs, maps=True)
    with own_attention(subject) as model, torch.inference_mode():
        eager = torch.stack(model(**inputs, output_attentions=True).attentions)
    assert reader.maps().shape == (2, 2, 4, 2, PATCHES)
    for i, (rows, spans) in enumerate(zip(ROWS, SPANS, strict=True)):
        padding = 23 - LENGTHS[i]
        for at, row in enumerate(rows):
            for name, span in spans.items():
                keys = [padding + position for position in span]
                own = eager[:, i, :, padding + row, keys]
                assert torch.allclose(reader.mass(name)[:, i, :, at], own.sum(-1), atol=1e-5)
                if name == "image":
                    assert torch.allclose(reader.maps()[:, i, :, at], own, atol=1e-5)


def test_a_prompt_with_fewer_rows_has_zeros_and_is_told_apart(tiny: Any) -> None:
    subject = tiny("llava")
    reader = read(subject, image_batch(subject), maps=True, outputs=True)
    assert reader.rows_there.tolist() == [[True, True], [True, False]]
    for kept in (reader.mass("image"), reader.maps(), reader.outputs()):
        assert not kept[:, 1, :, 1].any()
        assert kept[:, 1, :, 0].any()
    assert reader.image_there.all()


def test_outputs_are_what_the_output_projection_reads(tiny: Any) -> None:
    subject = tiny("llava")
    inputs = image_batch(subject)
    reader = read(subject, inputs, outputs=True)
    caught: list[Tensor] = []
    hooks = [
        layer.output_projection().register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        for layer in subject.anatomy.decoder
    ]
    with torch.inference_mode():
        subject.model(**inputs)
    for hook in hooks:
        hook.remove()
    for layer, x in enumerate(caught):
        assert torch.allclose(reader.outputs()[layer, 0, :, 1], x[0, 22].view(4, 8), atol=1e-5)
        assert torch.allclose(reader.outputs()[layer, 1, :, 0], x[1, 22].view(4, 8), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_windows_soft_caps_and_learned_sinks_are_respected(
    tiny: Any, some_tokens: Any, own_attention: Any, family: str
) -> None:
    subject, ids = tiny(family), some_tokens(19)
    reader = VisionReader([[3, 18]], [{"image": range(2, 12)}], maps=True)
    with torch.inference_mode(), Tap(subject, readers=[reader]):
        subject.model(ids)
    with own_attention(subject) as model, torch.inference_mode():
        eager = torch.stack(model(ids, output_attentions=True).attentions)
    assert torch.allclose(reader.maps()[:, 0], eager[:, 0][:, :, [3, 18], 2:12], atol=1e-5)
    assert torch.allclose(reader.mass("image")[:, 0], eager[:, 0][:, :, [3, 18], 2:12].sum(-1), atol=1e-5)


def test_rows_a_few_at_a_time_are_the_rows_at_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny("llava")
    inputs = image_batch(subject)
    whole = read(subject, inputs, maps=True)
    monkeypatch.setattr(probes.vision_reader, "AT_ONCE", 1)
    parts = read(subject, inputs, maps=True)
    assert torch.allclose(parts.maps(), whole.maps(), atol=1e-6)
    assert torch.allclose(parts.mass("question"), whole.mass("question"), atol=1e-6)


def test_what_can_not_be_read_is_refused_in_a_sentence(tiny: Any, some_tokens: Any) -> None:
    subject = tiny("llama")
    spans = {"image": range(2)}
    with pytest.raises(HeadscopeError, match="to its end"), Tap(subject, readers=[VisionReader([[9]], [spans])]):
        subject.model(some_tokens(9))
    with (
        pytest.raises(HeadscopeError, match="made for 1 prompts"),
        Tap(subject, readers=[VisionReader([[1]], [spans])]),
    ):
        subject.model(some_tokens(9, 2))
    reader = VisionReader([[1]], [spans])
    with Tap(subject, readers=[reader]):
        subject.model(some_tokens(9))
        with pytest.raises(HeadscopeError, match="one forward"):
            subject.model(some_tokens(9))
    with pytest.raises(HeadscopeError, match="same names"):
        VisionReader([[1], [1]], [spans, {"question": range(2)}])
    with pytest.raises(HeadscopeError, match="Nothing was read"):
        VisionReader([[1]], [spans]).mass("image")
