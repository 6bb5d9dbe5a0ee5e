"""A Prompt with a picture in it: what the model's processor makes of both, and where the picture's tokens are.

prompt = image_prompt(subject, open_image("cat.png"), "What is in the picture?")
prompt.spans["image"]       # positions of the image tokens; "system" before them, "question" behind
prompt.patches[i]           # the part of the picture that the i-th of them stands for
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from probes.errors import HeadscopeError
from probes.images import check_size
from probes.patch_grid import PatchGrid
from probes.patches import Cutting, image_patches
from probes.prompt import Prompt
from probes.subject import Subject

# One number per token, which the model's batch is given anew (probes.batch).
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "offset_mapping")
# What the LLaVA authors write around picture and question, for processors that carry no chat template.
LLAVA_FRAME = "USER: {image}\n{question} ASSISTANT:"

SomePrompt = TypeVar("SomePrompt", bound=Prompt)


@dataclass(frozen=True)
class ImagePrompt(Prompt):
    """inputs: what the processor gave beside the tokens, for this one prompt, a leading dimension of 1 or of patches.

    patches: for each position of spans["image"] the part of the picture that it stands for, as fractions left, top,
    right, bottom; NaN for a separator. grids: which of them lie side by side, in rows and columns.
    frame: positions of the tokens that stand there for the picture's sake and are no image tokens.
    """

    inputs: Mapping[str, Tensor] = field(repr=False)
    patches: Float[Tensor, "image 4"] = field(repr=False)
    grids: tuple[PatchGrid, ...]
    frame: tuple[int, ...] = ()


def image_prompt(subject: Subject, image: Image.Image, question: str, *, answer_start: str = "") -> ImagePrompt:
    """The picture and the question as one user message through the model's chat template.

    spans: "system" is everything before the first image token, "image" the image tokens, "question" everything behind
    the last one, answer_start included. Raises HeadscopeError for a model that sees no pictures, a picture that it
    refuses, a text that names the picture again, and a template that leaves it out.
    """
    processor = subject.processor
    if processor is None or subject.anatomy.image_token is None:
        raise HeadscopeError(f"{subject.name} reads text alone: pictures need a vision-language model.")
    check_size(image)
    mark = getattr(processor, "boi_token", None) or processor.image_token
    text = _rendered(subject, mark, question) + answer_start
    before, _, after = text.partition(mark)
    encoded = _processed(subject, image.convert("RGB"), text)
    ids = encoded["input_ids"][0]
    offsets = tuple((int(a), int(b)) for a, b in encoded["offset_mapping"][0])
    block = (len(before), _written_length(subject, text, offsets) - len(after))
    whole = before + _text_of_block(subject, ids.tolist(), offsets, block) + after
    at = torch.nonzero(ids == subject.anatomy.image_token)[:, 0].tolist()
    if not at:
        raise HeadscopeError(f"The processor of {subject.name} puts no image token into the prompt.")
    inputs = {name: x for name, x in encoded.items() if name not in PER_TOKEN}
    cutting = Cutting(
        processor=processor, config=subject.model.config, height=image.height, width=image.width, inputs=inputs,
        tokens=len(at), block=whole[slice(*block)],
    )  # fmt: skip
    patches, grids = image_patches(cutting)
    spans = {"system": range(at[0]), "image": at, "question": range(at[-1] + 1, len(ids))}
    return ImagePrompt(
        ids=ids,
        text=whole,
        offsets=offsets,
        spans={name: tuple(positions) for name, positions in spans.items()},
        inputs=inputs,
        patches=patches,
        grids=grids,
        frame=_frame(subject, ids, offsets, block, at),
    )


def without_image(prompt: ImagePrompt, *, keep_frame: bool = False) -> Prompt:
    """The same tokens without the picture: spans "system" and "question" (and "generated" where there is one).

    Everything that stands there for the picture's sake goes: its tokens, the marks around it and around its tiles, the
    newlines that the processor put between. A token that holds some of the prompt's own characters too stays.
    keep_frame: only the image tokens go, as in the VHR authors' code as ported by others.
    """
    gone = {*prompt.spans["image"], *(() if keep_frame else prompt.frame)}
    kept = [position for position in range(len(prompt)) if position not in gone]
    cut = [0] * len(prompt.text)
    for position in gone:
        for character in range(*prompt.offsets[position]):
            cut[character] = 1
    text = "".join(character for character, is_cut in zip(prompt.text, cut, strict=True) if not is_cut)
    before = list(accumulate(cut, initial=0))
    offsets = tuple((a - before[a], b - before[b]) for a, b in (prompt.offsets[position] for position in kept))
    new = {old: i for i, old in enumerate(kept)}
    spans = {
        name: tuple(new[position] for position in positions if position in new)
        for name, positions in prompt.spans.items()
        if name != "image"
    }
    return Prompt(prompt.ids[torch.tensor(kept, dtype=torch.long)], text, offsets, spans)


def continued(prompt: SomePrompt, ids: Sequence[int]) -> SomePrompt:
    """The prompt with these tokens at its end, as span "generated"; they cover none of its text."""
    if not ids:
        return prompt
    end = len(prompt.text)
    generated = range(len(prompt), len(prompt) + len(ids))
    return replace(
        prompt,
        ids=torch.cat([prompt.ids, torch.tensor(list(ids), dtype=torch.long, device=prompt.ids.device)]),
        offsets=prompt.offsets + ((end, end),) * len(ids),
        spans={**prompt.spans, "generated": (*prompt.spans.get("generated", ()), *generated)},
    )


def _rendered(subject: Subject, mark: str, question: str) -> str:
    if not question.strip():
        raise HeadscopeError("The question is empty: ask something about the picture.")
    template = getattr(subject.processor, "chat_template", None) or getattr(subject.tokenizer, "chat_template", None)
    if template is None and str(subject.model.config.model_type).startswith("llava"):
        text = LLAVA_FRAME.format(image=mark, question=question)
    elif template is None:
        raise HeadscopeError(f"{subject.name} has no chat template, which says where a picture goes in the prompt.")
    else:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = subject.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
    if mark not in text:
        raise HeadscopeError(f"The chat template of {subject.name} puts no image token into the prompt.")
    if text.count(mark) > 1:
        raise HeadscopeError(f"A prompt shows one picture: leave {mark} out of the question.")
    return str(text)


def _processed(subject: Subject, image: Image.Image, text: str) -> Mapping[str, Tensor]:
    processor: Any = subject.processor
    start = subject.tokenizer.bos_token
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return processor(
                images=[image],
                text=[text],
                add_special_tokens=not (start and text.startswith(start)),
                return_offsets_mapping=True,
                return_tensors="pt",
            )
    except (ValueError, ArithmeticError, TypeError, LookupError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise HeadscopeError(
            f"The processor of {subject.name} can't take this picture of {image.width} x {image.height} pixels "
            f"({reason[:200]})."
        ) from error


def _written_length(subject: Subject, text: str, offsets: Sequence[tuple[int, int]]) -> int:
    """Characters of the text that the processor tokenised; some tokenizers leave spaces at the end out of offsets."""
    plain = subject.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    left_out = len(text) - max(int(b) for _, b in plain)
    return max(b for _, b in offsets) + left_out


def _text_of_block(
    subject: Subject, ids: Sequence[int], offsets: Sequence[tuple[int, int]], block: tuple[int, int]
) -> str:
    """The characters that the processor wrote for the picture, which it does not hand back: from the tokens there."""
    start, stop = block
    text = [" "] * (stop - start)
    for token, (a, b) in zip(ids, offsets, strict=True):
        if a < stop and b > start:
            written = str(subject.tokenizer.decode([token], skip_special_tokens=False))
            written = written if len(written) == b - a else written[: b - a].ljust(b - a)
            text[max(a, start) - start : min(b, stop) - start] = written[max(start - a, 0) : min(b, stop) - a]
    return "".join(text)


def _frame(
    subject: Subject, ids: Tensor, offsets: Sequence[tuple[int, int]], block: tuple[int, int], image: Sequence[int]
) -> tuple[int, ...]:
    own = [i for i, (a, b) in enumerate(offsets) if b > a and a >= block[0] and b <= block[1]]
    inside = set(range(min(own), max(own) + 1)) - set(image)
    config: Any = subject.model.config
    # Qwen's template, not its processor, writes these two beside the picture.
    if image[0] and int(ids[image[0] - 1]) == getattr(config, "vision_start_token_id", None):
        inside.add(image[0] - 1)
    if image[-1] + 1 < len(ids) and int(ids[image[-1] + 1]) == getattr(config, "vision_end_token_id", None):
        inside.add(image[-1] + 1)
    return tuple(sorted(inside))
