"""What is rewritten in some rows of a softmax attention, as data: logits boosted, mass handed from sinks to an image.

Both differ from kernels.reweight in that what they do to a row depends on that row's own logits or masses. Nothing here
looks at a tensor's values: a decode step would wait for the GPU in every layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Kind = Literal["absolute", "multiply", "across heads"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Boost:
    """The scaled logits s_ij, before soft-cap and mask, of query i in `queries` and key j in `keys`:

    absolute      s += strength |s|: never falls where strength is above 0. Liu et al., "Paying More Attention to Image"
                  (PAI, ECCV 2024), and PAINT (arXiv 2501.12206)
    multiply      s *= strength: falls where s is negative and strength above 1. ClearSight / VAF (CVPR 2025)
    across heads  s += strength * the mean of |s| over all heads of the layer. Jiang et al., "Devils in Middle Layers of
                  Large Vision-Language Models" (CVPR 2025)

    strength is per head; `neutral` leaves a head as it is. The leading dimension of each tensor is the batch or 1.
    Raises ValueError for another kind and for sets that are not bool.
    """

    keys: Bool[Tensor, "b m"]
    queries: Bool[Tensor, "b n"]
    strength: Float[Tensor, "b h"]
    kind: Kind

    def __post_init__(self) -> None:
        _are_sets(self, "keys", "queries")
        if self.kind not in KINDS:
            raise ValueError(f"kind of a Boost is {self.kind!r}, and must be one of {', '.join(KINDS)}")

    @property
    def neutral(self) -> float:
        return neutral_strength(self.kind)


@dataclass(frozen=True)
class Redistribution:
    """Image-centric rows hand `give` of each sink key's attention to the image keys that are no sinks.

    Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models" (VAR, ICLR 2025). A row, a
    query of one head, is image-centric where its mass on the image is at least `floor`, and image keys that are no
    sinks hold at least `ratio` of that. Every sink gives, those in the text too; the receivers share in proportion to
    what they hold, so that the row's sum stays. The paper's p is `give`.

    The released code multiplies sinks by p, which is give = 1 - p, and takes rho as the most that sinks may hold, which
    is ratio = 1 - rho.

    shuffle: seed of a control with as many rewritten rows: each of `heads` is taken for image-centric where another of
    them is. The leading dimension of each tensor is the batch or 1. Raises ValueError for numbers outside 0 to 1 and
    for sets that are not bool.
    """

    sinks: Bool[Tensor, "b m"]
    image: Bool[Tensor, "b m"]
    queries: Bool[Tensor, "b n"]
    heads: Bool[Tensor, "b h"]
    give: float
    ratio: float
    floor: float
    shuffle: int | None = None

    def __post_init__(self) -> None:
        _are_sets(self, "sinks", "image", "queries", "heads")
        for name in ("give", "ratio", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} of a Redistribution is {getattr(self, name)}, and must lie between 0 and 1")


@dataclass(frozen=True)
class Rewritten:
    """An output with some rows in place of those it had, and in how many (query, head) pairs of Redistributions.

    rows_image_centric: were image-centric. rows_without_target: had enough mass on the image and on sinks, and every
    image key that they see is a sink; they were left as they were. Both count once for each Redistribution, and are
    scalars on the device of the output.
    """

    output: Float[Tensor, "b h n e"]
    rows_image_centric: int | Int[Tensor, ""]
    rows_without_target: int | Int[Tensor, ""]


def neutral_strength(kind: Kind) -> float:
    """The strength of a Boost that changes nothing."""
    return 1.0 if kind == "multiply" else 0.0


def check(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    boosts: Sequence[Boost],
    redistributions: Sequence[Redistribution],
) -> None:
    """Raises ValueError, naming the field, where a tensor's shape does not fit the attention."""
    if not boosts and not redistributions:
        raise ValueError("nothing is rewritten: without a Boost or a Redistribution call plain attention instead")
    (b, h, n, _), m = q.shape, k.shape[2]
    widths = {"keys": m, "sinks": m, "image": m, "queries": n, "strength": h, "heads": h}
    parts: tuple[Boost | Redistribution, ...] = (*boosts, *redistributions)
    for part in parts:
        for name in (field.name for field in fields(part) if field.name in widths):
            shape = tuple(getattr(part, name).shape)
            if shape not in ((b, widths[name]), (1, widths[name])):
                raise ValueError(
                    f"{name} of a {type(part).__name__} has the shape {shape}, and must have ({b} or 1, {widths[name]})"
                )


def _are_sets(part: object, *names: str) -> None:
    for name in names:
        if getattr(part, name).dtype != torch.bool:
            raise ValueError(f"{name} of a {type(part).__name__} must be bool, not {getattr(part, name).dtype}")
