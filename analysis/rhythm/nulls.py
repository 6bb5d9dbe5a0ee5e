"""What chance alone would give: peaks thrown anew on the places of a trace where a peak could stand.

Two ways of chance. `scattered` throws as many peaks on random places, as Li et al. (arXiv 2510.13554) shuffle theirs,
and so forgets that two peaks are never neighbours. `shifted` turns the train of peaks around the trace as a ring, and
so keeps the gaps between them.

What is read at the peaks adds up over them, and either way puts each peak on each place equally often. So what chance
gives in the mean is known without drawing: the number of peaks times the mean over places, or `chance_of_a_peak` where
those that are looked for are scattered. Draws serve the spread, which differs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

DRAWS = 1000  # of each trace
MOST_DRAWN = 4_000_000  # random numbers held at once
SAME = 1e-9  # a drawn sum that falls short of the observed one by less reaches it: sums are rounded


@dataclass(frozen=True)
class Chance:
    """How often chance is asked, and with which random numbers."""

    draws: int
    generator: np.random.Generator

    def scattered(
        self, places: int, peaks: int, read: Callable[[Bool[np.ndarray, "draw place"]], Float[np.ndarray, "draw"]]
    ) -> Float[np.ndarray, "draw"]:
        """What `read` says of `peaks` different random places, True where one holds a peak, for each draw."""
        rows = max(1, MOST_DRAWN // max(1, places))
        chunks = [min(rows, self.draws - start) for start in range(0, self.draws, rows)]
        return np.concatenate([read(self._thrown(chunk, places, peaks)) for chunk in chunks])

    def shifted(self, peaks: Int[np.ndarray, "peak"], values: Float[np.ndarray, "place"]) -> Float[np.ndarray, "draw"]:
        """Sum of `values` at the peaks after a shift drawn from all that the ring of places has, none included."""
        if not peaks.size:
            return np.zeros(self.draws)
        return shifted_sums(peaks, values)[self.generator.integers(len(values), size=self.draws)]

    def _thrown(self, draws: int, places: int, peaks: int) -> Bool[np.ndarray, "draw place"]:
        thrown = np.zeros((draws, places), dtype=bool)
        if peaks:
            order = self.generator.random((draws, places), dtype=np.float32).argpartition(peaks - 1)
            np.put_along_axis(thrown, order[:, :peaks], True, axis=1)
        return thrown


def shifted_sums(peaks: Int[np.ndarray, "peak"], values: Float[np.ndarray, "place"]) -> Float[np.ndarray, "shift"]:
    """Sum over the peaks of values[(peak + shift) mod places], for each shift from 0.

    A circular correlation, so a Fourier transform gives all shifts in O(places log places).
    """
    train = np.zeros(len(values))
    train[peaks] = 1
    return np.fft.irfft(np.conj(np.fft.rfft(train)) * np.fft.rfft(values), len(values))


def chance_of_a_peak(places: int, peaks: int, window: int) -> float:
    """Probability that `window` given places hold at least one of `peaks` scattered on `places`.

    1 - C(places - window, peaks) / C(places, peaks): the product misses place after place. 0 without a peak.
    """
    if not peaks:
        return 0.0
    return 1 - math.prod(max(0, places - peaks - each) / (places - each) for each in range(window))


def reached(observed: float, drawn: Float[np.ndarray, "draw"]) -> float:
    """One-sided permutation p-value: how often chance reaches what was observed, which counts as a draw of its own."""
    return (1 + int((drawn >= observed - SAME * max(1, abs(observed))).sum())) / (1 + len(drawn))
