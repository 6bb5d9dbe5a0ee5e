"""Did the intervention do it? Baseline against treated against random heads, on the same examples.

    found = compare(baseline, treated, controls, bounded=True, better="higher", seed=0)
    found.treated_to_control.difference, found.warnings

One number per example and condition, from any task. Every difference is taken example by example. Intervals: Wilson
for means of numbers in [0, 1], BCa bootstrap for others; for differences the paired bootstrap. Tests: McNemar's exact
test (Psychometrika 12, 1947) where both conditions hold only 0 and 1, else a sign-flip permutation test of the mean.
Intervals and p-values are over examples; what the choice of random heads adds is `spread`.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, permutation_test

from analysis.uncertainty import CONFIDENCE, bca_mean, paired_difference, wilson
from probes.errors import HeadscopeError

POWER = 0.8
CEILING = 0.95  # a mean in [0, 1] from here on leaves no room to rise, below 1 - CEILING none to fall
COARSE = 0.1  # where even a difference this large may be missed, the examples are too few
COARSE_EFFECT = 0.5  # the same for other scales, in standard deviations of the differences: Cohen's medium effect
PERMUTATIONS = 9999
MOST_FLIPPED = 1_000_000  # numbers held at once while flipping signs

Values = Float[np.ndarray, "example"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; None where all examples are equal on a scale without bounds: spread unknown."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Change:
    """One condition minus another, example by example.

    effect: where both hold only 0 and 1, Cohen's g, the share of the changed examples that rose minus 1/2; else
    Cohen's d_z, the mean difference in standard deviations of the differences. None where those are 0 and the mean
    difference is not.
    """

    difference: Estimate
    p: float
    test: Literal["McNemar exact", "sign-flip permutation"]
    effect: float | None
    effect_name: Literal["Cohen's g", "Cohen's d_z"]
    improved: int
    worsened: int
    unchanged: int


@dataclass(frozen=True)
class Spread:
    """The treated heads among the sets of random heads, by how far each moves the mean away from the baseline.

    rank: 1 where no random set moves it as far. p = rank / (sets + 1), the chance of such a rank if the treated heads
    were one more random set; it can't fall below p_floor = 1 / (sets + 1).
    """

    sets: int
    lowest: float
    highest: float
    rank: int
    p: float
    p_floor: float


@dataclass(frozen=True)
class Comparison:
    """What an intervention changed, and what as many random heads change.

    `control` is the mean over the sets, example by example: its counts are of examples that any set moved.
    """

    n: int
    better: Literal["higher", "lower"]
    baseline: Estimate
    treated: Estimate
    control: Estimate | None
    treated_to_baseline: Change
    control_to_baseline: Change | None
    treated_to_control: Change | None
    spread: Spread | None
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data, without NaN or infinity."""
        return {
            **asdict(self),
            "confidence": CONFIDENCE,
            "correction": "none: p-values and intervals are for this comparison alone, over examples",
        }


def compare(
    baseline: Values,
    treated: Values,
    controls: Float[np.ndarray, "set example"] | None,
    *,
    bounded: bool,
    better: Literal["higher", "lower"],
    seed: int,
) -> Comparison:
    """Means, paired differences and warnings for one intervention.

    baseline, treated, controls: the value of each example in each condition, the examples in the same order; controls
    holds a row for each set of random heads. bounded: the values are shares or other numbers in [0, 1].
    Raises HeadscopeError for fewer than 2 examples, other shapes, NaN, and numbers outside [0, 1] that are `bounded`.
    """
    before = _checked("baseline", baseline, None, bounded=bounded)
    after = _checked("treated", treated, before.shape, bounded=bounded)
    control = spread = None
    if controls is not None:
        if not len(controls):
            raise HeadscopeError("controls: no set of random heads is given; pass None for a comparison without.")
        sets = np.stack([_checked("controls", row, before.shape, bounded=bounded) for row in controls])
        control, spread = sets.mean(0), _spread(before.mean(), after.mean(), sets.mean(1))

    def estimate(values: Values) -> Estimate:
        mean = float(values.mean())
        return _estimate(mean, wilson(mean, len(values)) if bounded else bca_mean(values, seed=seed))

    def change(new: Values, old: Values) -> Change:
        return _change(new, old, bounded=bounded, better=better, seed=seed)

    found = Comparison(
        n=len(before),
        better=better,
        baseline=estimate(before),
        treated=estimate(after),
        control=None if control is None else estimate(control),
        treated_to_baseline=change(after, before),
        control_to_baseline=None if control is None else change(control, before),
        treated_to_control=None if control is None else change(after, control),
        spread=spread,
        warnings=[],
    )
    found.warnings.extend(_warnings(found, gap=after - before, bounded=bounded))
    return found


def holm(p_values: ArrayLike) -> Float[np.ndarray, "comparison"]:
    """p-values corrected for their number, in the order given: Holm, Scandinavian Journal of Statistics 6, 1979.

    The i-th smallest of m becomes max over j <= i of (m - j + 1) p_j, at most 1. Raises HeadscopeError outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise HeadscopeError("A p-value lies between 0 and 1, and one of those given does not.")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def minimum_detectable(n: int, baseline_share: float) -> float | None:
    """Smallest difference of two paired shares that McNemar's test finds at 5 % in 80 % of repetitions; in (0, 1].

    The exact test asks for a little more.

    Connor (Biometrics 43, 1987): n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2, with psi the share of examples
    that change. psi is taken as if the two answers to an example had nothing to do with each other; they mostly have,
    and then a smaller difference is found. d points to the side of the baseline where there is more room.
    None where n examples find no difference at all. Raises HeadscopeError for n < 1 or a share outside [0, 1].
    """
    if n < 1 or not 0 <= baseline_share <= 1:
        raise HeadscopeError(f"n is at least 1 and a share lies in [0, 1]: {n} and {baseline_share} do not.")
    share = max(baseline_share, 1 - baseline_share)  # a fall from p is a rise from 1 - p

    def lacking(d: float) -> float:
        psi = share + (share - d) - 2 * share * (share - d)
        return _Z * math.sqrt(psi) + _Z_POWER * math.sqrt(max(0.0, psi - d * d)) - d * math.sqrt(n)

    return None if lacking(share) > 0 else float(brentq(lacking, 1e-9, share))


_Z = float(norm.ppf((1 + CONFIDENCE) / 2))
_Z_POWER = float(norm.ppf(POWER))


def _checked(name: str, values: ArrayLike, shape: tuple[int, ...] | None, *, bounded: bool) -> Values:
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or len(numbers) < 2:
        raise HeadscopeError(f"{name}: a comparison takes one number for each of at least 2 examples.")
    if shape is not None and numbers.shape != shape:
        raise HeadscopeError(
            f"{name}: {len(numbers)} examples, and the baseline has {shape[0]}; they must be the same."
        )
    if not np.isfinite(numbers).all():
        missing = int((~np.isfinite(numbers)).sum())
        raise HeadscopeError(
            f"{name}: {missing} of {len(numbers)} values are NaN or infinite; leave such examples out."
        )
    if bounded and not ((numbers >= 0) & (numbers <= 1)).all():
        raise HeadscopeError(
            f"{name}: bounded values lie in [0, 1], and these reach {numbers.min():g} to {numbers.max():g}."
        )
    return numbers


def _estimate(value: float, bounds: tuple[float, float] | None) -> Estimate:
    low, high = bounds or (None, None)
    return Estimate(value, low, high)


def _change(new: Values, old: Values, *, bounded: bool, better: str, seed: int) -> Change:
    gap = new - old
    rose, fell = int((gap > 0).sum()), int((gap < 0).sum())
    if bounded:
        value, *bounds = paired_difference(new, old, seed=seed)
        difference = Estimate(value, *bounds)
    else:
        difference = _estimate(float(gap.mean()), bca_mean(gap, seed=seed))
    binary = bool(np.isin([new, old], (0, 1)).all())
    improved, worsened = (rose, fell) if better == "higher" else (fell, rose)
    return Change(
        difference=difference,
        p=_mcnemar(rose, fell) if binary else _sign_flip(gap, seed=seed),
        test="McNemar exact" if binary else "sign-flip permutation",
        effect=_cohens_g(rose, fell) if binary else _cohens_d(gap),
        effect_name="Cohen's g" if binary else "Cohen's d_z",
        improved=improved,
        worsened=worsened,
        unchanged=len(gap) - rose - fell,
    )


def _mcnemar(rose: int, fell: int) -> float:
    return float(binomtest(rose, rose + fell).pvalue) if rose + fell else 1.0


def _sign_flip(gap: Values, *, seed: int) -> float:
    batch = max(1, MOST_FLIPPED // len(gap))
    found = permutation_test(
        (gap,), np.mean, permutation_type="samples", vectorized=True, n_resamples=PERMUTATIONS, batch=batch, rng=seed
    )
    return float(found.pvalue)


def _cohens_g(rose: int, fell: int) -> float:
    return rose / (rose + fell) - 0.5 if rose + fell else 0.0


def _cohens_d(gap: Values) -> float | None:
    mean, deviation = float(gap.mean()), float(gap.std(ddof=1))
    if deviation > 1e-9:
        return mean / deviation
    return None if abs(mean) > 1e-9 else 0.0


def _spread(baseline: float, treated: float, sets: Float[np.ndarray, "set"]) -> Spread:
    as_far = np.abs(sets - baseline) >= abs(treated - baseline) - 1e-9  # equal but for rounding is equal
    rank, ranks = 1 + int(as_far.sum()), len(sets) + 1
    return Spread(len(sets), float(sets.min()), float(sets.max()), rank, rank / ranks, 1 / ranks)


def _warnings(found: Comparison, *, gap: Values, bounded: bool) -> list[str]:
    said = []
    if not gap.any():
        said.append(
            f"All {found.n} examples are the same with and without the intervention: check that it reached the model."
        )
    elif found.treated_to_baseline.p >= 1 - CONFIDENCE and (least := _too_coarse(found, gap, bounded)):
        said.append(
            f"No difference is shown, and {found.n} examples are too few to exclude one: {least} is found in "
            f"{POWER:.0%} of repetitions."
        )
    if bounded and found.baseline.value >= CEILING:
        said.append(f"The baseline is at its ceiling ({found.baseline.value:.2f}): only a fall can be seen.")
    if bounded and found.baseline.value <= 1 - CEILING:
        said.append(f"The baseline is at its floor ({found.baseline.value:.2f}): only a rise can be seen.")
    if found.control_to_baseline is not None and found.control_to_baseline.p < 1 - CONFIDENCE:
        shift = found.control_to_baseline.difference.value
        said.append(
            f"Random heads change the result too, by {shift:+.3g} (p = {found.control_to_baseline.p:.2g}): compare the "
            "treated heads with them, not with the baseline."
        )
    return said


def _too_coarse(found: Comparison, gap: Values, bounded: bool) -> str | None:
    """The smallest difference that this many examples find, where it is a large one."""
    if not bounded:
        effect = (_Z + _Z_POWER) / math.sqrt(found.n)
        least = effect * float(gap.std(ddof=1))
        return f"only one of {least:.3g} ((z + z') sd / sqrt(n))" if effect > COARSE_EFFECT else None
    share = minimum_detectable(found.n, found.baseline.value)
    if share is None:
        return "not even the largest (Connor 1987)"
    return f"only one of {share:.2f} (Connor 1987, unrelated answers)" if share > COARSE else None
