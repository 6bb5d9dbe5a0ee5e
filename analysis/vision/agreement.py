"""Would other data, or another training of the same model, have ranked the heads alike?

    agreement_of_halves(scores, seed=0)                 # scores (case, layer, head), as one model shows them
    agreement_of_models(scores, scores_of_another)      # two seeds of the same training

Rank correlation (Spearman) over all heads, and how many of the k first heads two rankings share. Two blind rankings
share k of N by luck: the overlap is hypergeometric with mean k / N as a share of k, and is shown beside it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, rankdata
from xarray import DataArray

from analysis.uncertainty import CONFIDENCE
from probes.errors import HeadscopeError

RESAMPLES = 1000
TOP_HEADS = 10
Scores = NDArray[np.float64]


def rank_correlation(first: DataArray, second: DataArray) -> float:
    """Spearman's correlation of two scores of the same heads, in [-1, 1]; 0 where one of them tells no heads apart."""
    _check_alike(first, second)
    return float(_spearman(first.values.reshape(1, -1), second.values.reshape(1, -1))[0])


def overlap(first: DataArray, second: DataArray, *, top: int = TOP_HEADS) -> dict[str, Any]:
    """Share of the `top` highest heads of one score among those of the other, beside what luck would give.

    value, chance (its mean, top / heads), chance_low and chance_high (which hold 95 % of blind rankings), p (of an
    overlap as large by luck), top, heads. Ties are broken by the order of the heads.
    Raises HeadscopeError for scores of different heads, or a `top` that is not between 1 and their number.
    """
    _check_alike(first, second)
    heads = first.size
    _check_top(top, heads)
    shared = round(float(_overlap(first.values.reshape(1, -1), second.values.reshape(1, -1), top)[0]) * top)
    return {"value": shared / top, **_luck(shared, top, heads)}


def agreement_of_halves(
    scores: DataArray, *, seed: int, top: int = TOP_HEADS, splits: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """How alike the halves of the data rank the heads: `correlation` and `overlap`, each the mean over random halvings.

    scores: one per case, dims (case, layer, head), the cases first whatever their name. low and high hold 95 % of the
    halvings: what another halving of these cases would show, not what other cases would.
    Raises HeadscopeError for fewer than 4 cases.
    """
    flat = _flat(scores)
    n = len(flat)
    if n < 4:
        raise HeadscopeError(f"{n} cases can't be halved to compare: use at least 4.")
    _check_top(top, flat.shape[1])
    generator = np.random.default_rng(seed)
    halves = generator.random((splits, n)).argsort(1) < n // 2
    first = halves @ flat / (n // 2)
    second = ~halves @ flat / (n - n // 2)
    return _summary(_spearman(first, second), _overlap(first, second, top), n=n, top=top, heads=flat.shape[1])


def agreement_of_models(
    first: DataArray, second: DataArray, *, seed: int, top: int = TOP_HEADS, paired: bool = True
) -> dict[str, dict[str, Any]]:
    """How alike two models rank the same heads: `correlation` and `overlap` of their mean scores.

    first, second: dims (case, layer, head). paired: case i is the same in both, and they are resampled together. The
    intervals are percentile bootstraps over cases: noise in the scores pulls the resampled correlation below the one
    of all cases, so that the interval may lie under its value.
    Raises HeadscopeError for different heads, and for paired scores of different numbers of cases.
    """
    _check_alike(first[0], second[0])
    one, other = _flat(first), _flat(second)
    if paired and len(one) != len(other):
        raise HeadscopeError(f"Scores of {len(one)} and {len(other)} cases can't be paired: pass paired=False.")
    _check_top(top, one.shape[1])
    generator = np.random.default_rng(seed)
    counts = _resamples(generator, len(one))
    others = counts if paired else _resamples(generator, len(other))
    a, b = counts @ one, others @ other
    found = _summary(_spearman(a, b), _overlap(a, b, top), n=len(one), top=top, heads=one.shape[1])
    means = one.mean(0, keepdims=True), other.mean(0, keepdims=True)
    found["correlation"]["value"] = float(_spearman(*means)[0])
    found["overlap"]["value"] = float(_overlap(*means, top)[0])
    return found


def _summary(correlations: Scores, overlaps: Scores, *, n: int, top: int, heads: int) -> dict[str, dict[str, Any]]:
    luck = _luck(round(float(overlaps.mean()) * top), top, heads)
    return {
        "correlation": {**_spread(correlations), "n": n},
        # No p here: a mean over resamples is no single overlap.
        "overlap": {**_spread(overlaps), "n": n, **{name: x for name, x in luck.items() if name != "p"}},
    }


def _spread(values: Scores) -> dict[str, Any]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _luck(shared: int, top: int, heads: int) -> dict[str, Any]:
    blind = hypergeom(heads, top, top)
    tail = (1 - CONFIDENCE) / 2
    return {
        "chance": top / heads,
        "chance_low": float(blind.ppf(tail)) / top,
        "chance_high": float(blind.ppf(1 - tail)) / top,
        "p": float(blind.sf(shared - 1)),
        "top": top,
        "heads": heads,
    }


def _spearman(a: Scores, b: Scores) -> Scores:
    """Row by row; ranks of ties are averaged."""
    x, y = (rankdata(scores, axis=1) - (scores.shape[1] + 1) / 2 for scores in (a, b))
    norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.where(norms > 0, (x * y).sum(1) / np.where(norms > 0, norms, 1), 0.0)


def _overlap(a: Scores, b: Scores, top: int) -> Scores:
    """Row by row, the share of `top`."""
    first, second = (rankdata(-scores, axis=1, method="ordinal") <= top for scores in (a, b))
    return (first & second).sum(1) / top


def _resamples(generator: np.random.Generator, n: int) -> Scores:
    return generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def _flat(scores: DataArray) -> Scores:
    return scores.values.reshape(scores.shape[0], -1).astype(float)


def _check_alike(first: DataArray, second: DataArray) -> None:
    if first.shape != second.shape:
        raise HeadscopeError(f"Scores of {first.shape} and {second.shape} heads can't be compared head by head.")


def _check_top(top: int, heads: int) -> None:
    if not 1 <= top <= heads:
        raise HeadscopeError(f"There is no overlap of the {top} first heads among {heads}: choose 1 to {heads}.")
