"""Prompts with a picture: spans, and the part of the picture that each image token really is made of."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from torch import Tensor

from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt, continued, image_prompt, without_image
from probes.patch_grid import SEPARATOR, patch_names
from probes.subject import Subject, load
from tests.probes.families import FAMILIES, PATCH, SIDE, TEMPLATES, folder_of

Loaded = Callable[[str], Subject]
QUESTION = "What is it?"
SIZES = [(320, 200), (200, 320), (256, 256), (600, 96)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    known: dict[str, Subject] = {}

    def one(family: str) -> Subject:
        if family not in known:
            known[family] = load(str(folder_of(family, tmp_path_factory.mktemp(family))), device="cpu")
        return known[family]

    return one


def black_with_a_white_square(width: int, height: int, box: tuple[float, float, float, float]) -> Image.Image:
    image = Image.new("RGB", (width, height))
    left, top, right, bottom = box
    ImageDraw.Draw(image).rectangle(
        (left * width, top * height, right * width - 1, bottom * height - 1), fill=(255, 255, 255)
    )
    return image


def cells(pixels: Tensor, size: int) -> Tensor:
    """Mean brightness of the cells of (..., height, width), (..., cells)."""
    return pixels.unfold(-2, size, size).unfold(-2, size, size).mean((-1, -2)).flatten(-2)


def brightness(subject: Subject, inputs: Any) -> Tensor:
    """What each image token is made of, from the pixels by the model's own way of cutting and packing them."""
    pixels = inputs["pixel_values"]
    model = subject.model.model
    match subject.model.config.model_type:
        case "llava":
            return cells(pixels[0].mean(0), PATCH)
        case "gemma3":
            return cells(pixels[0].mean(0), SIDE // 2)
        case "qwen2_5_vl" | "qwen3_vl":
            return pixels.mean(-1).view(-1, 4).mean(-1)
        case "llava_next":
            tiles = cells(pixels[0].mean(1), PATCH)[..., None]
            newline = torch.tensor([torch.nan])
            [packed], _ = model.pack_image_features([tiles], inputs["image_sizes"], "default", image_newline=newline)
            return packed[:, 0]
        case "smolvlm":
            tiles = cells(pixels[0].mean(1), PATCH)[..., None]
            return model.connector.pixel_shuffle(tiles, 2).mean(-1).flatten()
    raise AssertionError


def covered(patches: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """The share of each patch that lies in the box."""
    low, high = torch.tensor(box[:2]), torch.tensor(box[2:])
    overlap = (torch.minimum(patches[:, 2:], high) - torch.maximum(patches[:, :2], low)).clamp_min(0).prod(-1)
    return overlap / (patches[:, 2:] - patches[:, :2]).prod(-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_white_square_lights_up_the_tokens_whose_patches_cover_it(
    loaded: Loaded, family: str, size: tuple[int, int]
) -> None:
    check_lit_tokens(loaded(family), size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["squeezed", "padded", "small in its crop"])
def test_a_llava_that_gets_its_pictures_another_way_is_read_that_way(
    loaded: Loaded, way: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, square = loaded("llava"), {"height": SIDE, "width": SIDE}
    made = {
        "squeezed": transformers.CLIPImageProcessorPil(size=square, do_center_crop=False),
        "padded": transformers.LlavaImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size=square, do_pad=True, image_mean=[0, 0, 0]
        ),
        "small in its crop": transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE // 2}, crop_size=square),
    }
    monkeypatch.setattr(subject.processor, "image_processor", made[way])
    check_lit_tokens(subject, size)


def check_lit_tokens(subject: Subject, size: tuple[int, int]) -> None:
    black, white = (
        brightness(subject, image_prompt(subject, Image.new("RGB", size, color), QUESTION).inputs)
        for color in ("black", "white")
    )
    for box in ((0.3, 0.3, 0.7, 0.7), (0.0, 0.0, 0.5, 0.25), (0.55, 0.4, 0.95, 1.0)):
        prompt = image_prompt(subject, black_with_a_white_square(*size, box), QUESTION)
        assert len(black) == len(prompt.patches) == len(prompt.spans["image"])
        told = ~prompt.patches.isnan().any(-1)
        assert told.sum() >= 4
        assert not ((white - black)[~told] > 0).any()
        # By what the token of an all-white picture is lit: at the picture's rim it can be half padding.
        lit = ((brightness(subject, prompt.inputs) - black) / (white - black))[told]
        expected = covered(prompt.patches, box)[told]
        assert (lit - expected).abs().mean() < 0.04
        assert (lit - expected).abs().max() < 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_part_the_prompt_at_the_picture(loaded: Loaded, family: str) -> None:
    subject = loaded(family)
    prompt = image_prompt(subject, Image.new("RGB", (40, 24), "red"), QUESTION, answer_start="It is")
    system, image, question = (prompt.spans[name] for name in ("system", "image", "question"))
    assert (system[0], system[-1] + 1, image[-1] + 1, question[-1] + 1) == (0, image[0], question[0], len(prompt))
    assert all(prompt.ids[position] == subject.anatomy.image_token for position in image)
    assert prompt.text.endswith(TEMPLATES[family][2] + "It is")
    shown = "".join(prompt.token_text(position) for position in range(len(prompt)))
    assert shown == prompt.text
    start = prompt.text.index(QUESTION)
    asked = prompt.positions(start, start + len(QUESTION))
    assert set(asked) < set(question)
    assert subject.tokenizer.decode(prompt.ids[list(asked)]) == QUESTION
    assert (prompt.ids == subject.tokenizer.bos_token_id).sum() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_patches_of_a_grid_lie_side_by_side_and_all_that_show_something_are_in_one(
    loaded: Loaded, family: str, size: tuple[int, int]
) -> None:
    prompt = image_prompt(loaded(family), Image.new("RGB", size), QUESTION)
    inside = [token for grid in prompt.grids for token in grid.tokens()]
    assert len(set(inside)) == len(inside)
    assert set(torch.nonzero(~prompt.patches.isnan().any(-1))[:, 0].tolist()) <= set(inside)
    for grid in prompt.grids:
        parts = prompt.patches[grid.tokens()].view(grid.rows, grid.columns, 4)
        for before, after, axis in ((parts[:, :-1], parts[:, 1:], 0), (parts[:-1], parts[1:], 1)):
            there = ~(before.isnan() | after.isnan()).any(-1)
            torch.testing.assert_close(before[there][:, axis + 2], after[there][:, axis])  # edge on edge
            other = [1 - axis, 3 - axis]
            torch.testing.assert_close(before[there][:, other], after[there][:, other])  # same row or column


def test_image_tokens_are_called_by_grid_row_and_column(loaded: Loaded) -> None:
    named = {}
    for family in FAMILIES:
        prompt = image_prompt(loaded(family), Image.new("RGB", (320, 192)), QUESTION)
        named[family] = patch_names(prompt.grids, len(prompt.patches))
        assert (np.array(named[family]) == SEPARATOR).sum() == (prompt.patches.isnan().any(-1)).sum()
    assert named["llava"][:5] == [*(f"[patch r0c{column}]" for column in range(4)), "[patch r1c0]"]
    assert named["gemma3"] == ["[patch r0c0]", "[patch r0c1]", "[patch r1c0]", "[patch r1c1]"]
    assert named["llava_next"][0] == "[whole, patch r0c0]"
    assert named["llava_next"][16] == "[close, patch r0c0]"
    assert named["llava_next"][-1] == SEPARATOR  # a newline after each row
    assert named["smolvlm"][0] == "[tile r0c0, patch r0c0]"
    assert named["smolvlm"][4] == "[tile r0c1, patch r0c0]"
    assert named["smolvlm"][-1] == "[whole, patch r1c1]"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_image_a_prompt_is_the_chat_with_the_question_alone(loaded: Loaded, family: str) -> None:
    subject = loaded(family)
    before, image, after = TEMPLATES[family]
    prompt = image_prompt(subject, Image.new("RGB", (40, 24)), QUESTION)
    alone = without_image(prompt)
    between = image.removeprefix("<image>") if family.startswith("llava") else ""
    before = before.replace("{{ bos_token }}", "<bos>")
    # Two newlines are one token: the one before Gemma's picture is partly the template's, and stays.
    kept = "\n" if family == "gemma3" else ""
    assert alone.text == before + kept + between + QUESTION + after
    assert not isinstance(alone, ImagePrompt)
    assert set(alone.spans) == {"system", "question"}
    assert alone.spans["system"] + alone.spans["question"] == tuple(range(len(alone)))
    assert "".join(alone.token_text(position) for position in range(len(alone))) == alone.text
    framed = without_image(prompt, keep_frame=True)
    assert len(framed) == len(prompt) - len(prompt.spans["image"]) == len(alone) + len(prompt.frame)


def test_generated_tokens_go_with_the_prompt_when_the_image_does_not(loaded: Loaded) -> None:
    prompt = image_prompt(loaded("qwen2_5_vl"), Image.new("RGB", (40, 24)), QUESTION)
    longer = continued(continued(prompt, [70, 71]), [72])
    assert longer.spans["generated"] == tuple(range(len(prompt), len(prompt) + 3))
    assert continued(prompt, []) is prompt
    alone = without_image(longer)
    assert alone.ids[list(alone.spans["generated"])].tolist() == [70, 71, 72]


def test_a_processor_without_a_chat_template_gets_the_frame_of_the_llava_authors(loaded: Loaded) -> None:
    subject = loaded("llava")
    kept = subject.processor.chat_template, subject.tokenizer.chat_template
    try:
        subject.processor.chat_template = subject.tokenizer.chat_template = None
        prompt = image_prompt(subject, Image.new("RGB", (40, 24)), QUESTION)
        assert without_image(prompt).text == f"USER: \n{QUESTION} ASSISTANT:"
    finally:
        subject.processor.chat_template, subject.tokenizer.chat_template = kept


def test_what_can_not_be_asked_is_refused_in_a_sentence(loaded: Loaded) -> None:
    subject, image = loaded("llava"), Image.new("RGB", (40, 24))
    with pytest.raises(HeadscopeError, match="reads text alone"):
        image_prompt(replace(subject, processor=None), image, QUESTION)
    with pytest.raises(HeadscopeError, match="leave <image> out of the question"):
        image_prompt(subject, image, "What is <image>?")
    with pytest.raises(HeadscopeError, match="question is empty"):
        image_prompt(subject, image, " ")
    with pytest.raises(HeadscopeError, match="at least 8"):
        image_prompt(subject, Image.new("RGB", (4, 24)), QUESTION)
    with pytest.raises(HeadscopeError, match="can't take this picture of 4000 x 8 pixels"):
        image_prompt(loaded("qwen2_5_vl"), Image.new("RGB", (4000, 8)), QUESTION)


def test_a_template_that_leaves_the_picture_out_is_refused(loaded: Loaded) -> None:
    subject = loaded("llava")
    kept = subject.processor.chat_template
    try:
        subject.processor.chat_template = "{{ messages[0]['content'][1]['text'] }}"
        with pytest.raises(HeadscopeError, match="puts no image token"):
            image_prompt(subject, Image.new("RGB", (40, 24)), QUESTION)
    finally:
        subject.processor.chat_template = kept


def test_a_family_whose_patches_are_unknown_is_refused_by_name(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = loaded("llava")
    monkeypatch.setattr(subject.model.config, "model_type", "aya_vision")
    with pytest.raises(HeadscopeError, match="image token of a aya_vision model"):
        image_prompt(subject, Image.new("RGB", (40, 24)), QUESTION)
