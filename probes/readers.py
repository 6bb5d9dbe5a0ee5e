"""Readers: per-head numbers out of one layer's attention, small enough to keep."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.attention import visible_in
from kernels.statistics import CLIP, TOP, QueryWindow, Statistics, map_statistics, statistics
from probes.anatomy import LayerAnatomy
from probes.call import PATTERN_TOKENS, AttentionCall
from probes.errors import HeadscopeError


class StatisticsReader:
    """Statistics of every query and key (see `kernels.statistics`), layer by layer, one entry per forward.

    spans: name to prompt positions, for the statistic "mass". windows: name to the queries that count, for statistics
    per key. What was found stays on the model's device until it is asked for: fetching it would make a GPU wait once
    a layer.
    """

    def __init__(
        self,
        wanted: Iterable[str],
        spans: Mapping[str, Iterable[int]] | None = None,
        *,
        windows: Mapping[str, QueryWindow] | None = None,
        clip: int = CLIP,
        top: int = TOP,
    ) -> None:
        self.wanted = tuple(wanted)
        self.spans = {name: torch.tensor(sorted(positions)) for name, positions in (spans or {}).items()}
        self.windows, self.clip, self.top = dict(windows or {}), clip, top
        self.found: dict[tuple[str, int], list[Statistics]] = {}
        self._at_slots: tuple[torch.Size, dict[str, Tensor]] | None = None

    def _members(self, call: AttentionCall) -> dict[str, Tensor]:
        """Which keys are in each span. Where positions are slots every layer has the same answer."""
        shape = call.key_positions.shape
        if call.at_slots and self._at_slots is not None and self._at_slots[0] == shape:
            return self._at_slots[1]
        where = call.k.device
        members = {name: torch.isin(call.key_positions, at.to(where)) for name, at in self.spans.items()}
        if call.at_slots:
            self._at_slots = shape, members
        return members

    def read(self, call: AttentionCall) -> None:
        found = self._of_softmax(call) if call.rule is None else self._of_map(call)
        self.found.setdefault((call.layer.stack, call.layer.index), []).append(found)

    def _of_map(self, call: AttentionCall) -> Statistics:
        if call.k.shape[2] > PATTERN_TOKENS:
            raise HeadscopeError(
                f"This model attends by {call.rule[0].name if call.rule else ''}, whose map is measured whole: "
                f"{call.k.shape[2]} tokens are too many, {PATTERN_TOKENS} the most."
            )
        try:
            return map_statistics(
                call.pattern(),
                call.sees(),
                wanted=self.wanted,
                query_positions=call.query_positions,
                key_positions=call.key_positions,
                spans=self._members(call),
                windows=self.windows,
                clip=self.clip,
                top=self.top,
            )
        except ValueError as error:
            raise HeadscopeError(f"{error}.") from error

    def _of_softmax(self, call: AttentionCall) -> Statistics:
        return statistics(
            call.q,
            call.k,
            scale=call.scale,
            wanted=self.wanted,
            mask=call.mask,
            causal=call.causal,
            query_positions=None if call.at_slots else call.query_positions,
            key_positions=None if call.at_slots else call.key_positions,
            lse=call.lse,
            spans=self._members(call),
            windows=self.windows,
            softcap=call.layer.softcap,
            sink=call.sink,
            clip=self.clip,
            top=self.top,
        )

    def stacked(self, name: str, *, stack: str = "", forward: int = 0) -> Float[Tensor, "layer b h x"]:
        """One statistic of one forward pass, all layers of a stack together."""
        layers = sorted(index for where, index in self.found if where == stack)
        return torch.stack([self.found[stack, index][forward][name].cpu() for index in layers])


class NeedleReader:
    """For each decoded token: where every head looked hardest, its mass on the needle, the needle's share of output.

    needle: prompt positions. Only decode steps are read, as in the retrieval-head papers: the prompt's last token is
    the first of them. Batch size 1.
    """

    def __init__(self, needle: Iterable[int]) -> None:
        self.needle = torch.tensor(sorted(needle))
        self._top: dict[int, list[Tensor]] = {}
        self._mass: dict[int, list[Tensor]] = {}
        self._needle_output: dict[int, list[Tensor]] = {}
        self._output: dict[int, list[Tensor]] = {}
        self._visible: dict[int, list[Tensor]] = {}

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack or call.phase != "decode":
            return
        dtype = torch.promote_types(call.q.dtype, torch.float32)
        p = call.pattern()[0, :, 0]
        self.needle = self.needle.to(p.device)
        # The needle is masked, not picked out: picking makes a GPU wait for the CPU, thirty layers a token.
        member = torch.isin(call.key_positions[0], self.needle)
        part = p * member
        seen = torch.ones_like(member) if call.mask is None else visible_in(call.mask)[0, 0, 0]
        groups = call.v.shape[1]
        written = (part.view(groups, -1, part.shape[-1]) @ call.v[0].to(dtype)).flatten(0, 1)
        layer = call.layer.index
        self._top.setdefault(layer, []).append(call.key_positions[0][p.argmax(-1)])
        self._mass.setdefault(layer, []).append(part.sum(-1))
        self._visible.setdefault(layer, []).append(torch.stack([(member & seen).sum(), seen.sum()]))
        self._needle_output.setdefault(layer, []).append(written)
        self._output.setdefault(layer, []).append(call.output[0, :, 0].to(dtype))

    @staticmethod
    def _together(kept: dict[int, list[Tensor]]) -> Tensor:
        return torch.stack([torch.stack(kept[layer]) for layer in sorted(kept)], dim=1).cpu()

    def top_positions(self) -> Int[Tensor, "step layer head"]:
        """Position of the key with the largest weight."""
        return self._together(self._top)

    def needle_mass(self) -> Float[Tensor, "step layer head"]:
        """Attention on the needle, in [0, 1]."""
        return self._together(self._mass)

    def visible(self) -> Int[Tensor, "step layer 2"]:
        """How many keys of the needle the query may see, and how many keys at all."""
        return self._together(self._visible)

    def outputs(self) -> tuple[Float[Tensor, "step layer head d"], Float[Tensor, "step layer head d"]]:
        """The part of each head's output that the needle's values make up, and the whole output."""
        return self._together(self._needle_output), self._together(self._output)


class MeanQueryReader:
    """Mean query of every head before norm and RoPE, over all tokens read (LOCOS's calibration of `query_mean`)."""

    def __init__(self) -> None:
        self._sum: dict[int, Tensor] = {}
        self._count: dict[int, int] = {}

    def read(self, call: AttentionCall) -> None:
        """The attention itself is not needed."""

    def read_projection(self, layer: LayerAnatomy, queries: Float[Tensor, "b n h d"]) -> None:
        total = queries.double().sum((0, 1)).cpu()
        self._sum[layer.index] = self._sum.get(layer.index, torch.zeros_like(total)) + total
        self._count[layer.index] = self._count.get(layer.index, 0) + queries.shape[0] * queries.shape[1]

    def means(self) -> dict[int, Float[Tensor, "h d"]]:
        return {layer: (total / self._count[layer]).float() for layer, total in self._sum.items()}
