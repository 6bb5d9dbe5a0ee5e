"""Intervals for shares and means over cases."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

RESAMPLES = 2000
CONFIDENCE = 0.95


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share; it stays honest at 0 and at n, where a bootstrap shrinks to a point."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


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
