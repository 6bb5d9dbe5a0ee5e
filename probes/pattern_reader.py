"""How much does each head look a given number of tokens back, whatever stands there?

    reader = PatternReader({"previous": range(1, 2), "near": range(8)}, first=8)
    with Tap(subject, readers=[reader]):
        subject.model(ids)
    reader.mass("previous")     # (layer, head), in [0, 1]

The mean over queries i of sum_lag A[i, i - lag]: previous-token heads look one token back, induction heads (Olsson et
al., "In-context Learning and Induction Heads", 2022) in a text of L tokens said twice L - 1 back, duplicate-token heads
(Wang et al., "Interpretability in the Wild", ICLR 2023) L back. The map itself is never built.
"""

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from kernels.statistics import QueryWindow
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.readers import StatisticsReader

_ALL = "all"


class PatternReader:
    """Attention at chosen lags in one prompt without padding, read in one forward.

    lags: name to how many tokens back the keys may lie, 0 being the query's own position. first: the queries that
    count begin at this position.
    """

    def __init__(self, lags: Mapping[str, range], *, first: int) -> None:
        windows = {name: QueryWindow(first, None, back[0], back[-1]) for name, back in lags.items()}
        self.first = first
        self._statistics = StatisticsReader(["received_sum"], windows={_ALL: QueryWindow(first), **windows})

    def read(self, call: AttentionCall) -> None:
        if call.q.shape[2] <= self.first and not call.layer.stack:
            raise HeadscopeError(
                f"A prompt of {call.q.shape[2]} tokens has no query from position {self.first} on: use a longer prompt."
            )
        self._statistics.read(call)

    def mass(self, name: str) -> Float[Tensor, "layer head"]:
        """Mean attention at these lags, in [0, 1]: of the queries' whole attention, sinks included."""
        queries = self._sums(_ALL).shape[-1] - self.first
        return self._sums(name).sum(-1) / queries

    def share(self, name: str, *, without: Iterable[int] = ()) -> Float[Tensor, "layer head"]:
        """Attention at these lags as a share of all attention on the prompt's keys, in [0, 1].

        The keys at the positions `without`, such as sinks, and what a learned sink took count on neither side. 0 where
        nothing is left.
        """
        kept = self._sums(_ALL).new_ones(self._sums(_ALL).shape[-1])
        kept[list(without)] = 0
        near, every = self._sums(name) @ kept, self._sums(_ALL) @ kept
        return (near / every).where(every > 0, 0.0)

    def _sums(self, name: str) -> Float[Tensor, "layer head key"]:
        return self._statistics.stacked(f"received_sum:{name}")[:, 0]
