"""What one trace says of each coupling: what is read at its peaks, and what chance would read there.

The couplings themselves, and what they ask, are in analysis.rhythm.couplings.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.rhythm.judging import Counted
from analysis.rhythm.nulls import Chance, chance_of_a_peak
from analysis.rhythm.peaks import PeakRule, can_peak, peaks
from probes.errors import HeadscopeError


@dataclass(frozen=True)
class Series:
    """One trace, a number for each token of its response, NaN where there is none.

    waad: of the local heads, tokens. fai: of the global heads. entropy: nats. receiver_fai: of the receiver heads,
        None where none were chosen.
    """

    waad: Float[np.ndarray, "token"]
    fai: Float[np.ndarray, "token"]
    entropy: Float[np.ndarray, "token"]
    receiver_fai: Float[np.ndarray, "token"] | None = None

    def __post_init__(self) -> None:
        others = [self.fai, self.entropy] if self.receiver_fai is None else [self.fai, self.entropy, self.receiver_fai]
        if any(len(other) != len(self.waad) for other in others):
            raise HeadscopeError("The series of a trace differ in length: give each one number for each token.")


def entropy_at_peaks(trace: Series, rule: PeakRule | None, chance: Chance) -> Counted:
    """Entropy in nats at the peaks of WAAD. Scattered are these peaks."""
    places = can_peak(trace.waad) & np.isfinite(trace.entropy)
    found, values = _among(peaks(trace.waad, rule), places), trace.entropy[places].astype(float)
    expected = _expected(len(found), values)
    return Counted(
        read=float(values[found].sum()),
        peaks=len(found),
        places=len(values),
        expected={"shuffle": expected, "shift": expected},
        drawn={
            "shuffle": chance.scattered(len(values), len(found), lambda thrown: thrown @ values),
            "shift": chance.shifted(found, values),
        },
    )


def followed_peaks(
    first: Float[np.ndarray, "token"],
    second: Float[np.ndarray, "token"],
    rule: PeakRule | None,
    chance: Chance,
    *,
    lag: int,
) -> Counted:
    """Peaks of `first` with one of `second` 0 to `lag` tokens later. Scattered are those of `second`.

    A place is a token where `first` could peak, and `second` at all of these tokens.
    """
    room = can_peak(second)
    places = can_peak(first) & np.all(_window(room, lag), axis=-1)
    targets = np.zeros(len(second), dtype=bool)
    targets[peaks(second, rule)] = True
    values = np.any(_window(targets, lag), axis=-1)[places].astype(float)
    found = _among(peaks(first, rule), places)
    # The window of a place lies in `room` whole, so that its tokens are neighbours there too.
    windows = _among(np.flatnonzero(places)[found], room)[:, None] + np.arange(lag + 1)
    count = int(targets.sum())
    likely = chance_of_a_peak(int(room.sum()), count, lag + 1)
    return Counted(
        read=float(values[found].sum()),
        peaks=len(found),
        places=len(values),
        expected={"shuffle": len(found) * likely, "shift": _expected(len(found), values)},
        drawn={
            "shuffle": chance.scattered(int(room.sum()), count, lambda thrown: thrown[:, windows].any(-1).sum(-1)),
            "shift": chance.shifted(found, values),
        },
        targets=count,
        room=int(room.sum()),
    )


def _expected(peaks: int, values: Float[np.ndarray, "place"]) -> float:
    """Sum of the values at peaks that are anywhere equally likely."""
    return peaks * float(values.mean()) if peaks else 0.0


def _among(tokens: Int[np.ndarray, "n"], places: Bool[np.ndarray, "token"]) -> Int[np.ndarray, "m"]:
    """Those of the tokens that are places, each as its number among the places."""
    return (np.cumsum(places) - 1)[tokens[places[tokens]]]


def _window(marked: Bool[np.ndarray, "token"], lag: int) -> Bool[np.ndarray, "token later"]:
    """Each token's mark, and those of the `lag` tokens after it; False beyond the end."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(marked, (0, lag)), lag + 1)
