"""Sinks and a window: do the first few keys hold a head up that sees only near ones otherwise?

p = softmax over the visible keys j < sink or within the window of the query. Positions stay those of the text; the
released code of the paper counts them inside its cache, which only differs once keys have been dropped.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (StreamingLLM), ICLR 2024, section 3.2.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from kernels.mechanisms import sliding_window
from kernels.mechanisms.call import Call, Settings, by_blocks, softmax_map
from kernels.mechanisms.mechanism import Mechanism, Parameter

SINK, WINDOW = 4, 1020  # the paper's cache of 1,024


def is_sink(call: Call, settings: Settings) -> Bool[Tensor, "b m"]:
    """Which keys are among the first `sink` positions of the text."""
    return (call.key_positions >= 0) & (call.key_positions < settings["sink"])


def reach(call: Call, settings: Settings) -> Bool[Tensor, "b m"]:
    """Which keys are sinks or in the window of any query."""
    return is_sink(call, settings) | sliding_window.reach(call, settings)


def effective_map(call: Call, settings: Settings) -> Float[Tensor, "b h n m"]:
    """The softmax of the sinks and of the keys in the window."""
    sinks = is_sink(call, settings)[:, None, None, :]
    return softmax_map(call.only(sinks | sliding_window.in_window(call, settings)))


MECHANISM = Mechanism(
    name="sink_window",
    title="Sinks and a sliding window",
    paper='Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024',
    licence="written from the paper",
    needs_training=False,
    parameters={
        "sink": Parameter("keys at the start of the text that stay visible", SINK, low=0, whole=True),
        "window": Parameter("keys that a query sees besides, itself included", WINDOW, low=1, whole=True),
    },
    effective_map=effective_map,
    forward=by_blocks(effective_map, reach=reach),
)
