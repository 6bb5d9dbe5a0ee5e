"""Intervals for shares and means over cases."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, norm

RESAMPLES = 2000
CONFIDENCE = 0.95
MOST_RESAMPLED = 1_000_000  # numbers held at once while resampling


def interval(estimate: Mapping[str, Any]) -> str:
    """`0.83 [0.71, 0.91]`"""
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share, or of the mean of n numbers in [0, 1], for which it is wide enough or too wide.

    It stays honest at 0 and at 1, where a bootstrap shrinks to a point.
    """
    if n == 0:
        return 0.0, 1.0
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int
) -> tuple[float, float, float]:
    """Mean of first - second over the same cases, numbers in [0, 1], with its paired bootstrap interval.

    Where every case shows the same difference a bootstrap knows no spread; then the interval is Newcombe's.
    """
    gap = first - second
    value = float(gap.mean())
    if np.ptp(gap) > 1e-9:  # equal but for rounding is equal
        low, high = bootstrap_means(gap[:, None], seed=seed)
        return value, float(low[0]), float(high[0])
    a, b = (float(each.mean()) for each in (first, second))
    return value, *newcombe((a, *wilson(a, len(first))), (b, *wilson(b, len(second))))


def newcombe(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of the difference of two shares, each with its Wilson interval (value, low, high).

    Newcombe's hybrid (Statistics in Medicine 17, 1998, method 10 without the correlation).
    """
    a, low_a, high_a = first
    b, low_b, high_b = second
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def bootstrap_means(values: NDArray[np.float64], *, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile interval of the mean over the first axis (cases), for every column with the same resamples."""
    n = len(values)
    flat = values.reshape(n, -1)
    generator = np.random.default_rng(seed)
    # Counts of a resample are multinomial, so a resampled mean is one row of a matrix product.
    counts = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    means = counts @ flat
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def estimate(values: NDArray[np.float64], *, seed: int) -> dict[str, Any]:
    """The mean of a number for each case, with its bootstrap interval and n, as summaries hold it."""
    low, high = bootstrap_means(values[:, None], seed=seed)
    return {"value": float(values.mean()), "low": float(low[0]), "high": float(high[0]), "n": len(values)}


def bca_mean(values: NDArray[np.float64], *, seed: int) -> tuple[float, float] | None:
    """Interval of the mean of n numbers on any scale: bias-corrected and accelerated bootstrap (Efron, 1987).

    None where all numbers are equal but for rounding: their spread is unknown, not zero. Too narrow for few numbers,
    as bootstraps are: in 400 draws of 20 it held the mean of a normal 92 times in 100, of a lognormal 88.
    """
    if np.allclose(values, values[0], rtol=1e-9, atol=1e-9):
        return None
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, MOST_RESAMPLED // len(values)),
        confidence_level=CONFIDENCE,
        rng=seed,
    ).confidence_interval
    return float(found.low), float(found.high)
