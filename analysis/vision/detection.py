"""Can what the heads do betray an invented object, at the moment when its name begins?

    found = detect(features, invented, captions, seed=0)
    found["value"]      # AUROC on captions that had no say in the choice of heads

A feature is a number per object word, or one for every head: T-VHD (He et al., ACL 2025), attention on the image
(Jiang et al., "Devils in Middle Layers", CVPR 2025). Heads are chosen on one half of the captions and judged on the
other, and intervals resample captions: words of one caption are no independent cases.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit
from xarray import DataArray

from analysis.uncertainty import CONFIDENCE, RESAMPLES
from analysis.vision.objects import Mention
from probes.errors import HeadscopeError
from probes.subject import Subject

TOP_HEADS = 10
AT_ONCE = 100  # resamples whose words are held together
RIDGE = 1.0  # weight of the penalty against the summed loss
Numbers = NDArray[np.float64]


def first_rows(
    subject: Subject, caption: Sequence[int], mentions: Sequence[Mention], *, text: str | None = None
) -> list[int]:
    """For each mention the step of the caption (0 the first generated token) that wrote its first character.

    text: what the mentions were found in, part of the decoded caption; all of it, special tokens skipped, by default.
    Tokens are decoded as a growing caption, so that a character that a tokenizer splits belongs to the token that
    begins it. Raises HeadscopeError for a text that is not in the caption, or a mention beyond it.
    """
    written = [_decoded(subject, caption[:stop]) for stop in range(1, len(caption) + 1)]
    whole = written[-1] if written else ""
    start = 0 if text is None else whole.find(text)
    if start < 0:
        raise HeadscopeError("The mentions' text is not what these tokens say: find them in the decoded caption.")
    reach = np.array([_reach(each, whole) for each in written])
    rows = []
    for mention in mentions:
        later = np.flatnonzero(reach > start + mention.start)
        if not len(later):
            raise HeadscopeError(f"The caption ends before character {mention.start}, where {mention.name!r} begins.")
        rows.append(int(later[0]))
    return rows


def auroc(scores: ArrayLike, invented: ArrayLike) -> Numbers:
    """Chance that an invented object scores higher than a real one, ties counting half; over the first axis (words).

    scores: (word, ...). Returns the other dims; 0.5 is blind. Raises HeadscopeError where one kind is missing.
    """
    values, labels = np.asarray(scores, dtype=float), _labels(invented)
    flat = values.reshape(len(values), -1)
    weight = np.ones((1, len(flat)))
    areas = [_areas(column, labels, weight)[0] for column in flat.T]
    return np.array(areas).reshape(values.shape[1:])


def auroc_interval(
    scores: ArrayLike, invented: ArrayLike, captions: ArrayLike, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """AUROC of one number per word, with a percentile bootstrap that resamples whole captions.

    captions: which caption each word is from. value, low, high, n (words), invented, captions. Resamples that hold one
    kind only say nothing and are drawn over; where most do, the interval is [0, 1].
    """
    values, labels = np.asarray(scores, dtype=float), _labels(invented)
    names, where = np.unique(np.asarray(captions), return_inverse=True)
    n = len(names)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=2 * resamples).astype(float)
    of_kind = [np.bincount(where, weights=kind, minlength=n) for kind in (labels, ~labels)]
    counts = counts[np.all([counts @ kind > 0 for kind in of_kind], axis=0)][:resamples]
    low, high = 0.0, 1.0
    if len(counts) == resamples:
        blocks = [_areas(values, labels, some[:, where]) for some in np.array_split(counts, -(-resamples // AT_ONCE))]
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(np.concatenate(blocks), [tail, 1 - tail])
    return {
        "value": float(_areas(values, labels, np.ones((1, len(values))))[0]),
        "low": float(low),
        "high": float(high),
        "n": len(values),
        "invented": int(labels.sum()),
        "captions": n,
    }


def detect(
    features: DataArray,
    invented: ArrayLike,
    captions: ArrayLike,
    *,
    seed: int,
    top: int = TOP_HEADS,
    higher: bool = False,
    fitted: bool = False,
) -> dict[str, Any]:
    """AUROC on one half of the captions of the heads that tell best on the other half.

    Returns what `auroc_interval` does, with `heads`, (layer, head) pairs best first (none of them when fitted).
    Takes and raises what `suspicion` does.
    """
    scores, heads = suspicion(features, invented, captions, seed=seed, top=top, higher=higher, fitted=fitted)
    return {**judge(scores, invented, captions, seed=seed), "heads": heads}


def judge(scores: Numbers, invented: ArrayLike, captions: ArrayLike, *, seed: int) -> dict[str, Any]:
    """AUROC on the judging half alone, as `auroc_interval` gives it."""
    labels, caption = _labels(invented), np.asarray(captions)
    judging = ~split(caption, seed=seed)
    return auroc_interval(scores[judging], labels[judging], caption[judging], seed=seed)


def suspicion(
    features: DataArray,
    invented: ArrayLike,
    captions: ArrayLike,
    *,
    seed: int,
    top: int = TOP_HEADS,
    higher: bool = False,
    fitted: bool = False,
) -> tuple[Numbers, list[tuple[int, ...]]]:
    """A number for every word, high where it looks invented, by the heads that tell best on the choosing half.

    features: (word, layer, head). higher: whether a high number betrays an invented object; by default a low one does,
    as with attention on the image, and heads that work the other way are not chosen. Chosen heads count alike, each
    in standard deviations of the first half; fitted: a logistic regression with a ridge weighs all heads instead.
    Returns it with the chosen heads. Raises HeadscopeError where a half lacks invented or real objects.
    """
    labels, caption = _labels(invented), np.asarray(captions)
    flat = features.values.reshape(len(labels), -1).astype(float)
    if not 1 <= top <= flat.shape[1]:
        raise HeadscopeError(f"{top} heads can't be chosen among {flat.shape[1]}: choose 1 to {flat.shape[1]}.")
    first = split(caption, seed=seed)
    for half, name in ((labels[first], "choosing"), (labels[~first], "judging")):
        if half.all() or not half.any():
            raise HeadscopeError(f"The {name} half of the captions lacks invented or real objects: use more captions.")
    standard = standardised(flat, first)
    if fitted:
        return standard @ _logistic(standard[first], labels[first]), []
    sign = 1 if higher else -1
    best = np.argsort(-auroc(sign * standard[first], labels[first]), kind="stable")[:top]
    heads = [tuple(int(i) for i in np.unravel_index(each, features.shape[1:])) for each in best]
    return sign * standard[:, best].mean(1), heads


def split(captions: ArrayLike, *, seed: int) -> NDArray[np.bool_]:
    """Which words are in the choosing half: a random half of the captions, all words of a caption together."""
    names, where = np.unique(np.asarray(captions), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.isin(where, order[: len(names) // 2])


def standardised(features: Numbers, first: NDArray[np.bool_]) -> Numbers:
    """By the mean and deviation of the words in `first`; a feature that never varies there is 0 everywhere."""
    deviation = features[first].std(0)
    return np.where(deviation > 0, features - features[first].mean(0), 0) / np.where(deviation > 0, deviation, 1)


def _logistic(features: Numbers, labels: NDArray[np.bool_]) -> Numbers:
    """Weights of a logistic regression whose ridge spares the intercept, which moves no AUROC and is left out."""

    def loss(weights: Numbers) -> tuple[float, Numbers]:
        logits = features @ weights[1:] + weights[0]
        away = expit(logits) - labels
        ridge = np.r_[0, weights[1:]] * RIDGE
        value = float((np.logaddexp(0, logits) - labels * logits).sum() + ridge @ weights / 2)
        return value, np.r_[away.sum(), away @ features] + ridge

    return minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x[1:]


def _areas(scores: Numbers, labels: NDArray[np.bool_], weights: Numbers) -> Numbers:
    """AUROC of (resample, word) weights, one number for each resample."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    groups = np.flatnonzero(np.r_[True, ordered[1:] > ordered[:-1]])
    invented = np.add.reduceat((weights * labels)[:, order], groups, axis=1)
    real = np.add.reduceat((weights * ~labels)[:, order], groups, axis=1)
    below = real.cumsum(1) - real / 2
    return (invented * below).sum(1) / (invented.sum(1) * real.sum(1))


def _labels(invented: ArrayLike) -> NDArray[np.bool_]:
    labels = np.asarray(invented, dtype=bool)
    if labels.all() or not labels.any():
        raise HeadscopeError("A detector is judged on invented and on real objects: the captions hold one kind only.")
    return labels


def _decoded(subject: Subject, ids: Sequence[int]) -> str:
    return str(subject.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _reach(written: str, whole: str) -> int:
    """How many characters of the whole are begun: a character still incomplete decodes to something else."""
    same = next((i for i, (a, b) in enumerate(zip(written, whole, strict=False)) if a != b), None)
    same = min(len(written), len(whole)) if same is None else same
    return same + (len(written) > same)
