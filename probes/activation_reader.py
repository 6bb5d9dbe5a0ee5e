"""How far do a few numbers stand out? The largest entries of a block's activations, and how heavy their tails are.

reader = ActivationReader(["residual"])
with Tap(subject, readers=[reader]):
    subject.model(ids)
reader.found["residual", 11].entries[0]      # Entry(value=24721.4, position=0, coordinate=507)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probes.activations import Activation
from probes.anatomy import LayerAnatomy
from probes.call import AttentionCall
from probes.errors import HeadscopeError

TOP = 8
KURTOSIS_GUARD = 1e-6  # added below the line in the authors' code


@dataclass(frozen=True)
class Entry:
    """One number of an activation. For heads, `coordinate` counts through them: head * size + coordinate in it."""

    value: float
    position: int
    coordinate: int


@dataclass(frozen=True)
class Spread:
    """largest: the largest |x|, which is the infinity norm. median: of |x|, the lower one of two."""

    largest: float
    median: float
    kurtosis: float


@dataclass(frozen=True)
class Extremes:
    """Of one activation over one prompt: its spread, the same without the first token, the largest |x| first."""

    spread: Spread
    beyond_first: Spread
    entries: tuple[Entry, ...]


class ActivationReader:
    """`found` by activation and decoder layer, of one prompt in one forward.

    Raises HeadscopeError for a batch, and for a prompt of one token, of which nothing is left without its first.
    """

    def __init__(
        self, activations: Sequence[Activation] = ("residual", "attention", "mlp", "heads"), *, top: int = TOP
    ) -> None:
        self.activations, self.top = tuple(activations), top
        self.found: dict[tuple[str, int], Extremes] = {}

    def read(self, call: AttentionCall) -> None:
        """Attention itself is no activation."""

    def read_activation(self, layer: LayerAnatomy, name: str, x: Float[Tensor, "b n width"]) -> None:
        b, n, _ = x.shape
        if b != 1 or n < 2 or (name, layer.index) in self.found:
            raise HeadscopeError("Activations are read over one prompt of at least two tokens, whole, in one forward.")
        self.found[name, layer.index] = Extremes(spread(x[0]), spread(x[0, 1:]), largest_entries(x[0], self.top))


def spread(x: Float[Tensor, "n width"]) -> Spread:
    size = x.abs()
    return Spread(float(size.max()), float(size.median()), kurtosis(x))


def kurtosis(x: Float[Tensor, "..."]) -> float:
    """mean((x - mean)^4) / (std^4 + 1e-6) over all entries: 3 for a normal distribution, larger with heavier tails.

    std is the unbiased one, as in Bondarenko et al., "Quantizable Transformers", NeurIPS 2023.
    """
    wide = x.float()
    return float((wide - wide.mean()).square().square().mean() / (wide.std() ** 4 + KURTOSIS_GUARD))


def largest_entries(x: Float[Tensor, "n width"], count: int) -> tuple[Entry, ...]:
    """The `count` entries with the largest |x|, the largest first."""
    flat = x.flatten()
    index = flat.abs().topk(min(count, len(flat))).indices
    return tuple(
        Entry(value, *divmod(place, x.shape[1]))
        for value, place in zip(flat[index].tolist(), index.tolist(), strict=True)
    )
