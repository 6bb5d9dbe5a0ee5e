"""Statistics over a part of one layer's attention: some of its queries, and the keys that they sit on."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from kernels.statistics import Statistics, map_statistics, statistics
from probes.call import PATTERN_TOKENS, AttentionCall
from probes.errors import HeadscopeError


class Part:
    """One layer's attention, asked piece by piece. What the pieces share is computed once: the rows' log-sum-exp, or
    the map of a model that attends by a rule other than softmax, which only a short text has.
    """

    def __init__(self, call: AttentionCall) -> None:
        self.call = call
        self._map = None if call.rule is None else _whole_map(call)
        self._lse = None if call.rule is not None else _log_sum_exp(call)

    def statistics(self, queries: slice, keys: slice, **asked: Any) -> Statistics:
        """What kernels.statistics gives of these slots.

        The last query must sit on the last key, as it does where both slices stop at the same slot. Weights stay those
        of the whole map: a key outside the slice keeps what it takes.
        """
        call = self.call
        i, j = call.query_positions[:, queries], call.key_positions[:, keys]
        if self._map is not None:
            seen = call.sees()[..., queries, keys]
            return map_statistics(self._map[..., queries, keys], seen, query_positions=i, key_positions=j, **asked)
        assert self._lse is not None
        return statistics(
            call.q[:, :, queries],
            call.k[:, :, keys],
            scale=call.scale,
            mask=None if call.mask is None else call.mask[..., queries, keys],
            causal=call.causal,
            lse=self._lse[..., queries].contiguous(),
            softcap=call.layer.softcap,
            sink=call.sink,
            # Slots count from the slice's own first key, which no distance notices, and are the faster way.
            query_positions=None if call.at_slots else i,
            key_positions=None if call.at_slots else j,
            **asked,
        )


def _whole_map(call: AttentionCall) -> Float[Tensor, "b h n m"]:
    if call.k.shape[2] > PATTERN_TOKENS:
        raise HeadscopeError(
            f"This model attends by {call.rule[0].name if call.rule else ''}, whose map is measured whole: "
            f"{call.k.shape[2]} tokens are too many, {PATTERN_TOKENS} the most."
        )
    return call.pattern()


def _log_sum_exp(call: AttentionCall) -> Float[Tensor, "b h n"]:
    if call.lse is not None:
        return call.lse
    found = statistics(
        call.q,
        call.k,
        scale=call.scale,
        wanted=["lse"],
        mask=call.mask,
        causal=call.causal,
        softcap=call.layer.softcap,
        sink=call.sink,
    )
    return found["lse"]
