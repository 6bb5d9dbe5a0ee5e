"""What chosen queries look at, span by span and image token by image token, and what their heads say.

    reader = VisionReader([[119, 120]], [prompt.spans], maps=True)      # one entry for each prompt of the batch
    with Tap(subject, readers=[reader]):
        forward(subject, batch)
    reader.mass("image")        # (layer, b, head, row), in [0, 1]
    reader.maps()               # (layer, b, head, row, image token)

Only the rows asked for are computed, a few at a time: no map of every pair is built.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.attention import visible_in, weights
from probes.anatomy import LayerAnatomy
from probes.call import AttentionCall
from probes.errors import HeadscopeError

AT_ONCE = 1 << 26  # weights held at once: 256 MB in float32
_NOWHERE = -1


class VisionReader:
    """Decoder rows of one forward over a batch of whole prompts, padded on the left.

    rows: for each prompt, positions of the queries that count. spans: for each prompt, name to positions, the same
    names in all. Prompts with fewer rows or image tokens than the longest have zeros behind their own; `rows_there`
    and `image_there` tell them apart. maps: keep the attention on every token of the span `image`. outputs: keep what
    the heads say, gates and a Plan's changes included, as the output projection reads it.
    Raises HeadscopeError for a second forward, for rows beyond the prompt, and for a batch of another size.
    """

    def __init__(
        self,
        rows: Sequence[Iterable[int]],
        spans: Sequence[Mapping[str, Iterable[int]]],
        *,
        image: str = "image",
        maps: bool = False,
        outputs: bool = False,
    ) -> None:
        if len(rows) != len(spans) or not rows:
            raise HeadscopeError(f"Give rows and spans for each prompt: there are {len(rows)} and {len(spans)}.")
        if any(set(each) != set(spans[0]) for each in spans):
            raise HeadscopeError("The prompts of one batch must have spans of the same names.")
        self.names = tuple(spans[0])
        self.activations = ("heads",) if outputs else ()
        self._rows = _padded(rows)
        self._spans = {name: _padded([each[name] for each in spans]) for name in self.names}
        self._image = _padded([each.get(image, ()) for each in spans]) if maps else None
        self._slots: Int[Tensor, "b row"] | None = None
        self._mass: dict[int, Tensor] = {}
        self._maps: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack:
            return
        if call.layer.index in self._mass:
            raise HeadscopeError("A VisionReader reads one forward: make another one for the next batch.")
        if self._slots is None:
            self._place(call)
        slots = self._slots
        assert slots is not None
        keys = self._members(call)
        image = None if self._image is None else self._key_slots(call, self._image)
        (b, h), m = call.q.shape[:2], call.k.shape[2]
        mass, maps = [], []
        for some in slots.split(max(1, AT_ONCE // (b * h * m)), dim=1):
            p = rows_of(call, some)
            mass.append(p @ keys[:, None].to(p))
            if image is not None:
                index = image.clamp_min(0)[:, None, None].expand(-1, h, some.shape[1], -1)
                maps.append(p.gather(-1, index) * (image >= 0)[:, None, None])
        there = self.rows_there.to(call.q.device)[:, None, :, None]
        self._mass[call.layer.index] = torch.cat(mass, dim=2) * there
        if image is not None:
            self._maps[call.layer.index] = torch.cat(maps, dim=2) * there

    def read_activation(self, layer: LayerAnatomy, name: str, x: Float[Tensor, "b n width"]) -> None:
        assert self._slots is not None  # a layer's attention comes before its output projection
        wide = torch.promote_types(x.dtype, torch.float32)
        said = x.gather(1, self._slots[..., None].expand(-1, -1, x.shape[-1])).to(wide)
        said = said.unflatten(-1, (layer.query_heads, -1)).transpose(1, 2)
        self._outputs[layer.index] = said * self.rows_there.to(x.device)[:, None, :, None]

    def mass(self, name: str) -> Float[Tensor, "layer b h row"]:
        """Attention on one span, in [0, 1]."""
        return _together(self._mass)[..., self.names.index(name)]

    def maps(self) -> Float[Tensor, "layer b h row image"]:
        """Attention on each image token."""
        return _together(self._maps)

    def outputs(self) -> Float[Tensor, "layer b h row d"]:
        """What each head says, before the output projection."""
        return _together(self._outputs)

    @property
    def rows_there(self) -> Bool[Tensor, "b row"]:
        return self._rows != _NOWHERE

    @property
    def image_there(self) -> Bool[Tensor, "b image"]:
        if self._image is None:
            raise HeadscopeError("This VisionReader keeps no maps: pass maps=True.")
        return self._image != _NOWHERE

    def _place(self, call: AttentionCall) -> None:
        b, n = call.query_positions.shape
        if b != len(self._rows):
            raise HeadscopeError(f"The reader was made for {len(self._rows)} prompts, and the batch holds {b}.")
        first = call.query_positions[:, 0].cpu()
        wanted = torch.where(self.rows_there, self._rows - first[:, None], 0)
        if call.k.shape[2] != n or bool((wanted < 0).any()) or int(wanted.max()) >= n:
            raise HeadscopeError("The rows to read lie in whole prompts: run each one without a cache, to its end.")
        self._slots = wanted.to(call.q.device)

    def _members(self, call: AttentionCall) -> Float[Tensor, "b m span"]:
        """Which keys are in each span."""
        (b, m), extra = call.key_positions.shape, 1  # the last column takes what only fills up
        found = torch.zeros(b, m + extra, len(self.names), device=call.k.device)
        for i, positions in enumerate(self._spans.values()):
            slots = self._key_slots(call, positions)
            found[:, :, i].scatter_(1, torch.where(slots >= 0, slots, m), 1.0)
        return found[:, :m]

    def _key_slots(self, call: AttentionCall, positions: Int[Tensor, "b x"]) -> Int[Tensor, "b x"]:
        there = positions.to(call.k.device)
        return torch.where(there == _NOWHERE, _NOWHERE, there - call.key_positions[:, :1])


def rows_of(call: AttentionCall, slots: Int[Tensor, "b row"]) -> Float[Tensor, "b h row m"]:
    """Attention of the queries in these slots of the batch, each prompt its own, in float32 or wider."""
    (b, h, _, d), m = call.q.shape, call.k.shape[2]
    index = slots[:, None, :, None]
    if call.rule is not None:
        return call.pattern().gather(2, index.expand(b, h, -1, m))
    wide = torch.promote_types(call.q.dtype, torch.float32)
    q = call.q.gather(2, index.expand(b, h, -1, d)).to(wide)
    mask: Tensor | None = None
    if call.mask is not None:
        # As the kernel's mask: one that is additive stays additive.
        given = call.mask.expand(b, -1, -1, m)
        mask = given.gather(2, index.expand(b, given.shape[1], -1, m))
        mask = mask if mask.dtype == torch.bool else mask.to(wide).masked_fill(~visible_in(mask), -torch.inf)
    elif call.causal:
        mask = torch.arange(m, device=slots.device) <= index + (m - call.q.shape[2])
    layer = call.layer
    return weights(q, call.k.to(wide), scale=call.scale, mask=mask, softcap=layer.softcap, sink=call.sink)


def _padded(rows: Sequence[Iterable[int]]) -> Int[Tensor, "b x"]:
    each = [torch.tensor(list(row), dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=_NOWHERE)


def _together(kept: Mapping[int, Tensor]) -> Tensor:
    if not kept:
        raise HeadscopeError("Nothing was read: run a forward under the Tap, and ask for what it should keep.")
    return torch.stack([kept[layer] for layer in sorted(kept)]).cpu()
