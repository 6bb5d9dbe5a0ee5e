"""What each token of a prompt is called on a page: its text, or the patch of the picture that it stands for."""

from collections.abc import Sequence
from itertools import pairwise

from probes.image_prompt import ImagePrompt
from probes.patch_grid import patch_names
from probes.prompt import Prompt
from probes.subject import Subject


def token_texts(subject: Subject, prompt: Prompt) -> list[str]:
    """Generated tokens are decoded: they cover none of the prompt's own text."""
    texts = [prompt.token_text(position) for position in range(len(prompt))]
    if isinstance(prompt, ImagePrompt):
        _put(texts, prompt.spans["image"], patch_names(prompt.grids, len(prompt.patches)))
    said = prompt.spans.get("generated", ())
    if said:
        _put(texts, said, _pieces(subject, prompt.ids[list(said)].tolist()))
    return texts


def _pieces(subject: Subject, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it: alone, it may lose the space in front of it."""
    grown = [
        str(subject.tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)) for end in range(len(ids) + 1)
    ]
    return [after[len(before) :] for before, after in pairwise(grown)]


def _put(texts: list[str], positions: Sequence[int], named: Sequence[str]) -> None:
    for position, name in zip(positions, named, strict=True):
        texts[position] = name
