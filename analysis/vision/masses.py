"""Where do the heads look while each word of a caption is written: at the picture, the question, or the words before?

    looked = masses(subject, prompts, captions)         # captions: the token ids that followed each prompt
    looked["image"].mean("token")                       # (layer, head), in [0, 1]

Captions are run teacher-forced, prompt and caption in one forward, and read at the positions that predict their tokens:
the prompt's last one first. All tokens of all captions make up one dim, `token`, with the coordinates `prompt` (which
one) and `step` (which token of its caption, from 0).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from xarray import DataArray

from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.image_prompt import continued
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap
from probes.vision_reader import VisionReader

BATCH = 8
SPANS = ("image", "system", "question", "generated")
MIDDLE = (5 / 32, 18 / 32)  # layers 5 to 17 of the 32 that Jiang et al. looked at
DIMS = ("token", "layer", "head")


def masses(
    subject: Subject, prompts: Sequence[Prompt], captions: Sequence[Sequence[int]], *, batch: int = BATCH
) -> xr.Dataset:
    """Attention on each span at every step: image, system, question, generated, dims (token, layer, head), in [0, 1].

    A prompt without a span has 0 there; `generated` holds the caption's tokens up to the one that is read from. Learned
    sinks, and the marks that some processors put between tiles of the image, make the four fall short of 1.
    Raises HeadscopeError for an empty caption.
    """
    parts = [
        per_token({name: reader.mass(name) for name in SPANS}, reader, start)
        for start, reader in read_captions(subject, prompts, captions, batch=batch)
    ]
    return xr.concat(parts, "token").assign_attrs(model=subject.name, unit="share of attention")


def image_maps(
    subject: Subject,
    prompts: Sequence[Prompt],
    captions: Sequence[Sequence[int]],
    *,
    steps: Sequence[Sequence[int]] | None = None,
    batch: int = BATCH,
) -> list[DataArray]:
    """Attention on every image token, for each prompt (step, layer, head, image): of all steps, or of those asked for.

    Maps are large: 30 layers of 9 heads, 40 steps and 100 image tokens take 4 MB a prompt.
    """
    found = []
    for start, reader in read_captions(subject, prompts, captions, batch=batch, steps=steps, maps=True):
        maps = reader.maps()
        for i in range(maps.shape[1]):
            own = maps[:, i, :, reader.rows_there[i]][..., reader.image_there[i]]
            kept = range(own.shape[2]) if steps is None else steps[start + i]
            dims = ("step", "layer", "head", "image")
            found.append(DataArray(own.permute(2, 0, 1, 3).numpy(), dims=dims, coords={"step": list(kept)}))
    return found


def summed_ratio(image: DataArray, *, layers: range | None = None) -> DataArray:
    """SVAR of Jiang et al., "Devils in Middle Layers of Large Vision-Language Models", CVPR 2025, (token,).

    Attention on the image at the step that writes a token, summed over the middle layers and averaged over heads: in
    [0, number of layers]. layers: those of the paper, 5 to 17 of 32, in proportion to this model's.
    """
    kept = middle_layers(image.sizes["layer"]) if layers is None else layers
    return image.isel(layer=list(kept)).sum("layer").mean("head")


def middle_layers(layers: int) -> range:
    """Layers 5 to 17 of 32, in proportion."""
    first, end = (round(share * layers) for share in MIDDLE)
    return range(first, max(end, first + 1))


def predicting_rows(prompt: Prompt, caption: Sequence[int]) -> range:
    """Positions whose logits predict the caption's tokens: the prompt's last to the caption's last but one."""
    return range(len(prompt) - 1, len(prompt) + len(caption) - 1)


def read_captions(
    subject: Subject,
    prompts: Sequence[Prompt],
    captions: Sequence[Sequence[int]],
    *,
    batch: int = BATCH,
    steps: Sequence[Sequence[int]] | None = None,
    maps: bool = False,
    outputs: bool = False,
) -> Iterator[tuple[int, VisionReader]]:
    """Runs prompts with their captions, batch by batch: the number of its first prompt, and what was read there."""
    check_captions(prompts, captions)
    for start in range(0, len(prompts), batch):
        some, written = prompts[start : start + batch], captions[start : start + batch]
        rows = [predicting_rows(*each) for each in zip(some, written, strict=True)]
        wanted = rows if steps is None else [[row[step] for step in steps[start + i]] for i, row in enumerate(rows)]
        whole = [continued(prompt, caption) for prompt, caption in zip(some, written, strict=True)]
        spans = [{name: prompt.spans.get(name, ()) for name in SPANS} for prompt in whole]
        reader = VisionReader(wanted, spans, maps=maps, outputs=outputs)
        with torch.inference_mode(), Tap(subject, readers=[reader]):
            forward(subject, collate(subject, whole), logits_to_keep=1)
        yield start, reader


def check_captions(prompts: Sequence[Prompt], captions: Sequence[Sequence[int]]) -> None:
    """Raises HeadscopeError unless there is a caption of at least one token for each prompt."""
    if not prompts or len(prompts) != len(captions):
        raise HeadscopeError(f"Give one caption for each prompt: there are {len(prompts)} and {len(captions)}.")
    for i, caption in enumerate(captions):
        if not len(caption):
            raise HeadscopeError(f"Caption {i} is empty, so no step of it can be read: leave its prompt out.")


def per_token(values: dict[str, Tensor], reader: VisionReader, start: int) -> xr.Dataset:
    """Numbers of (layer, b, head, row) by token, dims (token, layer, head); rows that only fill up are left out."""
    there = reader.rows_there
    prompt, step = (x.numpy() for x in there.nonzero(as_tuple=True))
    kept = {name: (DIMS, x.permute(1, 3, 0, 2)[there].numpy()) for name, x in values.items()}
    return xr.Dataset(kept, coords={"prompt": ("token", prompt + start), "step": ("token", step)})


def per_prompt(values: DataArray) -> DataArray:
    """Mean over each prompt's tokens, its other dims kept behind `prompt`: the cases that intervals resample."""
    numbers, where = np.unique(values["prompt"].values, return_inverse=True)
    means = [values.values[where == i].mean(0) for i in range(len(numbers))]
    return DataArray(np.array(means), dims=("prompt", *values.dims[1:]), coords={"prompt": numbers})


def at_steps(values: DataArray, places: Sequence[tuple[int, int]]) -> DataArray:
    """The tokens at these (prompt, step), in their order: such as the first tokens of object words (see detection).

    Raises HeadscopeError for a place that was not read.
    """
    known = {place: i for i, place in enumerate(zip(values["prompt"].values, values["step"].values, strict=True))}
    if lacking := [place for place in places if place not in known]:
        raise HeadscopeError(f"Step {lacking[0][1]} of prompt {lacking[0][0]} was not read: its caption is shorter.")
    return values.isel(token=[known[place] for place in places])
