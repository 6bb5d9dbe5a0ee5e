"""Where does a query stand? Rotary embeddings, turned from one position to another.

RoPE multiplies a query at position i by R(i), which turns pairs of its numbers by i times their frequency (Su et al.,
"RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, equation 15). Turned by R(to - at), a query at
`at` is what it would be at `to`:

    cos(to - at) = (cos to cos at + sin to sin at) / s^2          sin(to - at) = (sin to cos at - cos to sin at) / s^2

with the cosines and sines that the model itself makes for both positions, s being what it scales them by. What float32
rounds off the angle of a far position is taken back with it.
"""

import inspect
import sys
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from probes.anatomy import LayerAnatomy
from probes.errors import HeadscopeError

LISTENING = "headscope-listening"
BY_LENGTH = ("dynamic", "longrope")
"""Kinds of RoPE whose frequencies depend on the longest position there is."""
TRIED = (7, 2)
"""Positions between which a layer's queries are turned to see whether they can be."""
TOLERANCE = 16
"""Of the model's own rounding of the largest number in a query."""


class _Heard(Exception):
    """A layer's queries, which is all that was asked of its forward."""

    def __init__(self, queries: Tensor) -> None:
        super().__init__()
        self.queries = queries


def turned(
    layer: LayerAnatomy, q: Float[Tensor, "b h n d"], *, at: Int[Tensor, "b n"], to: Int[Tensor, "b n"]
) -> Float[Tensor, "b h n d"]:
    """The queries, made at positions `at`, as they would be at positions `to`.

    Raises HeadscopeError where the layer turns its queries in no way that headscope knows, or by the text's length.
    """
    apply: Any = vars(sys.modules[type(layer.module).__module__]).get("apply_rotary_pos_emb")
    if apply is None:
        raise _unturnable(layer)
    cos_at, sin_at = _angles(layer, at, q)
    cos_to, sin_to = _angles(layer, to, q)
    square = cos_at * cos_at + sin_at * sin_at
    cos = (cos_to * cos_at + sin_to * sin_at) / square
    sin = (sin_to * cos_at - cos_to * sin_at) / square
    found: Tensor = apply(q, q, cos, sin)[0]
    return found.to(q.dtype)


@torch.inference_mode()
def check_turns(layer: LayerAnatomy) -> None:
    """Raises HeadscopeError where `turned` does not give the queries that the layer itself makes at another position.

    The layer is asked for them, once, because some have a rotary embedding and do not use it, or on a part of a query.
    """
    if layer.module in _TURNING:
        return
    module: Any = layer.module
    weight, draw = next(module.parameters()), torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 1, module.config.hidden_size, generator=draw).to(weight)
    at, to = (torch.tensor([[place]], device=weight.device) for place in TRIED)
    try:
        expected = _queries(layer, hidden, to)
        found = turned(layer, _queries(layer, hidden, at), at=at, to=to)
    except (TypeError, RuntimeError) as error:  # of a forward or a rotation that takes other arguments or shapes
        raise _unturnable(layer) from error
    allowed = TOLERANCE * torch.finfo(expected.dtype).eps * expected.abs().max()
    if found.shape != expected.shape or bool((found - expected).abs().max() > allowed):
        raise _unturnable(layer)
    _TURNING.add(layer.module)


def _angles(layer: LayerAnatomy, positions: Int[Tensor, "b n"], q: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own cosines and sines at these positions, in float32 or wider."""
    rotary = layer.rotary
    if rotary is None or hasattr(rotary, "mrope_section"):
        raise _unturnable(layer)
    kind = getattr(layer.module, "layer_type", None)
    rope: Any = getattr(rotary, "rope_type", None)
    if (rope[kind] if isinstance(rope, dict) else rope) in BY_LENGTH:
        raise HeadscopeError(
            f"{layer.path} turns its queries by the length of the text ({rope}), so positions inside a cache are not "
            "defined: stream without `cache`."
        )
    like = q.new_empty(0, dtype=torch.promote_types(q.dtype, torch.float32))
    by_kind = {"layer_type": kind} if "layer_type" in inspect.signature(rotary.forward).parameters else {}
    cos, sin = rotary(like, positions, **by_kind)
    return cos, sin


def _queries(layer: LayerAnatomy, hidden: Float[Tensor, "b n hidden"], positions: Int[Tensor, "b n"]) -> Tensor:
    """What the layer hands to its attention function, (b, h, n, d)."""
    config: Any = layer.module.config
    angles = tuple(x.to(hidden) for x in _angles(layer, positions, hidden))
    before, config._attn_implementation = config._attn_implementation, LISTENING
    try:
        layer.module(hidden_states=hidden, position_embeddings=angles, attention_mask=None)
    except _Heard as heard:
        return heard.queries
    finally:
        config._attn_implementation = before
    raise _unturnable(layer)


def _unturnable(layer: LayerAnatomy) -> HeadscopeError:
    return HeadscopeError(
        f"{layer.path} has no rotary embedding that turns whole queries by one position, so positions inside a cache "
        "can't be had: stream without `cache`."
    )


def _listen(_: object, query: Tensor, *__: object, **___: object) -> tuple[Tensor, None]:
    raise _Heard(query)


_TURNING: WeakSet[nn.Module] = WeakSet()
"""Attention layers that were asked, and do."""
AttentionInterface.register(LISTENING, _listen)
