"""What one layer's attention says of a response's rhythm, read in one forward and let go. The formulas: reading.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.rhythm.parts import Part
from kernels.statistics import QueryWindow
from probes.call import AttentionCall
from probes.errors import HeadscopeError

DIMS = {"waad": ("layer", "head", "token"), "fai": ("layer", "horizon", "head", "token")}


class RhythmReader:
    """Distances, WAAD and FAI of every head over the queries of a response; of the keys, the response's are kept.

    The first token of the sequence is the sink. window: W of WAAD. horizons: by name, how far ahead of a key a query
    counts, both ends included. layers: those to read, all where None.
    """

    def __init__(
        self, response: range, window: int, horizons: Mapping[str, QueryWindow], layers: Sequence[int] | None = None
    ) -> None:
        self.response, self.window, self.horizons, self.layers = response, window, dict(horizons), layers
        self._found: dict[int, dict[str, Tensor]] = {}

    def read(self, call: AttentionCall) -> None:
        index = call.layer.index
        if call.layer.stack or (self.layers is not None and index not in self.layers):
            return
        if call.mask is None and not call.causal:
            raise HeadscopeError(
                "This model's attention looks ahead as well as back, and rhythm is read where it can only look back."
            )
        queries, after_sink, part = slice(self.response.start, self.response.stop), call.key_positions > 0, Part(call)
        found = part.statistics(
            queries,
            slice(0, queries.stop),
            wanted=("distance", "clipped_distance", "mass", "received_sum"),
            spans={"sink": ~after_sink, "rest": after_sink},
            windows=self.horizons,
            clip=self.window,
        )
        # Measured without the sink, not subtracted: where it takes all but a hair, rounding alone would be left.
        rest = part.statistics(queries, slice(1, queries.stop), wanted=("distance",))["distance"] / found["mass:rest"]
        received = torch.stack([found[f"received_sum:{name}"] for name in self.horizons])
        self._found[index] = {
            "distance": found["distance"][0].mean(-1),
            "distance_without_sink": rest[0].nanmean(-1),
            "sink_mass": found["mass:sink"][0].mean(-1),
            "waad": found["clipped_distance"][0],
            # Divided by all of T(s), and not by those that a sliding window lets see the key.
            "fai": received[:, 0, :, queries] / self._listeners(received.device)[:, None],
        }

    def _listeners(self, device: torch.device) -> Float[Tensor, "horizon token"]:
        """|T(s)| of every token of the response; NaN where it is empty."""
        s = torch.arange(self.response.start, self.response.stop, device=device)
        counts = []
        for of in self.horizons.values():
            last = torch.full_like(s, self.response.stop - 1)
            if of.farthest is not None:
                last = last.minimum(s + of.farthest)
            counts.append(last - s - (of.nearest or 0) + 1)
        count = torch.stack(counts).float()
        return count.masked_fill(count <= 0, torch.nan)

    def found(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """Dims and float32 values of every variable, the layers in order."""
        layers = [self._found[index] for index in sorted(self._found)]
        return {
            name: (DIMS.get(name, ("layer", "head")), torch.stack([x[name] for x in layers]).float().cpu().numpy())
            for name in layers[0]
        }
