"""Sliding window: what is left of a head that sees only the last `window` keys?

p = softmax over the visible keys j with i - window < j <= i; where attention is not causal, with |i - j| < window.

Beltagy, Peters & Cohan, "Longformer: The Long-Document Transformer", 2020, section 3.1.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from kernels.mechanisms.call import Call, Settings, by_blocks, softmax_map
from kernels.mechanisms.mechanism import Mechanism, Parameter

WINDOW = 512  # Longformer's


def near(call: Call, settings: Settings, *, key: Tensor, first: Tensor, last: Tensor) -> Bool[Tensor, "..."]:
    """Which keys lie in the window of a query somewhere from `first` to `last`; all three are positions."""
    window = settings["window"]
    return (key > first - window) & (key <= last if call.causal else key < last + window)


def in_window(call: Call, settings: Settings) -> Bool[Tensor, "b 1 n m"]:
    """Which pairs are less than `window` apart."""
    query = call.query_positions[:, None, :, None]
    return near(call, settings, key=call.key_positions[:, None, None, :], first=query, last=query)


def reach(call: Call, settings: Settings) -> Bool[Tensor, "b m"]:
    """Which keys are in the window of any query."""
    first, last = (extreme[:, None] for extreme in call.query_positions.aminmax(dim=1))
    return near(call, settings, key=call.key_positions, first=first, last=last)


def effective_map(call: Call, settings: Settings) -> Float[Tensor, "b h n m"]:
    """The softmax of the keys in the window."""
    return softmax_map(call.only(in_window(call, settings)))


MECHANISM = Mechanism(
    name="sliding_window",
    title="Sliding window",
    paper='Beltagy et al., "Longformer: The Long-Document Transformer", 2020',
    licence="written from the paper",
    needs_training=True,
    parameters={"window": Parameter("keys that a query sees, itself included", WINDOW, low=1, whole=True)},
    effective_map=effective_map,
    forward=by_blocks(effective_map, reach=reach),
)
