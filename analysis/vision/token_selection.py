"""PAINT's two sets of image tokens, by what the vision tower's class token looks at.

    local, summary = selected_tokens(subject, prompts)[0]       # (image,), bool, no token in both

    local     the quarter of the patches that the first layer looks at most, without the summary
    summary   outliers of the last layer but one: above Q3 + 1.5 IQR

"Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model", arXiv 2501.12206, as
its code selects; attention is summed over heads. A tower without a class token (SigLIP) has no such query: there the
mean over all patches as queries takes its place, which is ours.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.batch import collate, forward
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt
from probes.subject import Subject
from probes.tap import Tap
from probes.vision_reader import rows_of

LOCAL_SHARE = 0.25
WHISKER = 1.5
CLASS_TOKENS = ("class_embedding", "cls_token")


class Selected(NamedTuple):
    """Image tokens of one prompt, in the order of its span `image`."""

    local: Bool[Tensor, " image"]
    summary: Bool[Tensor, " image"]


class TowerReader:
    """What the tower's class token, or the mean of its patches, gives every patch, summed over heads, by layer."""

    def __init__(self, layers: Collection[int], *, class_token: bool) -> None:
        self.layers, self.class_token = layers, class_token
        self.given: dict[int, Float[Tensor, "b patch"]] = {}

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack != "vision" or call.layer.index not in self.layers:
            return
        if self.class_token:
            first = torch.zeros(len(call.q), 1, dtype=torch.long, device=call.q.device)
            self.given[call.layer.index] = rows_of(call, first)[:, :, 0, 1:].sum(1)
        else:
            self.given[call.layer.index] = call.pattern().mean(2).sum(1)


@torch.inference_mode()
def selected_tokens(subject: Subject, prompts: Sequence[ImagePrompt]) -> list[Selected]:
    """For each prompt, on the CPU.

    Raises HeadscopeError for a tower whose patches are not the image tokens one by one (tiles, merged patches).
    """
    tower = [layer for layer in subject.anatomy.towers if layer.stack == "vision"]
    if not tower:
        raise HeadscopeError(f"{subject.name} has no vision tower whose attention could choose image tokens.")
    penultimate = max(0, len(tower) - 2)
    named = (name.rpartition(".")[2] for name, _ in subject.model.named_parameters())
    reader = TowerReader({0, penultimate}, class_token=any(name in CLASS_TOKENS for name in named))
    with Tap(subject, readers=[reader]):
        forward(subject, collate(subject, prompts), logits_to_keep=1)
    first, last = (reader.given.get(layer) for layer in (0, penultimate))
    wanted = (len(prompts), len(prompts[0].spans["image"]))
    for given in (first, last):
        if given is None or tuple(given.shape) != wanted or any(len(x.spans["image"]) != wanted[1] for x in prompts):
            raise HeadscopeError(
                f"PAINT chooses image tokens by the attention of the tower's patches, and in {subject.name} the two do "
                "not match one to one."
            )
    assert first is not None
    assert last is not None
    return [Selected(*_sets(*rows)) for rows in zip(first.float().cpu(), last.float().cpu(), strict=True)]


def _sets(
    first: Float[Tensor, " image"], last: Float[Tensor, " image"]
) -> tuple[Bool[Tensor, " image"], Bool[Tensor, " image"]]:
    local = torch.zeros(len(first), dtype=torch.bool)
    local[first.topk(int(LOCAL_SHARE * len(first))).indices] = True
    low, high = last.quantile(0.25), last.quantile(0.75)
    summary = last > high + WHISKER * (high - low)
    return local & ~summary, summary
