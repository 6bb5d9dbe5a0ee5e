"""What a model invents in its captions: how much, of which theme, and whether its heads betray it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray import DataArray

from analysis.vision import striking
from analysis.vision.cases import PictureSet
from analysis.vision.chair import Caption, CaptionCounts, chair_interval, count
from analysis.vision.detection import Numbers, auroc_interval, judge, split, suspicion
from analysis.vision.objects import Mention
from analysis.vision.ratios import Ratio, as_estimate, intervals
from probes.errors import HeadscopeError

Row = Mapping[str, Any]
Flags = NDArray[np.bool_]
DETECTING_HEADS = 10


def summarise(rows: Sequence[Row], among: PictureSet, *, seed: int) -> dict[str, Any]:
    """CHAIR of the captions, where the invented objects come from, and the detectors of them."""
    counts = [caption_counts(row) for row in rows]
    return {
        "chair": {name: as_estimate(found, len(rows)) for name, found in chair_interval(counts, seed=seed).items()},
        "company": company(rows, among, seed=seed),
        "detectors": detectors(rows, seed=seed),
    }


def caption_counts(row: Row) -> CaptionCounts:
    """CHAIR's numbers of a row of a record."""
    mentions = tuple(Mention(one["name"], one["start"], one["stop"]) for one in row["mentions"])
    objects = frozenset(one["name"] for one in row["objects"])
    return count(Caption(row["picture"], row["caption"], mentions, objects, len(row["tokens"])))


def company(rows: Sequence[Row], among: PictureSet, *, seed: int) -> dict[str, Any]:
    """Do invented objects belong to the scene? Their share that does, and the share of all absent objects that does.

    theme: objects of the theme that the caption names, where it names one. likely: what goes with the picture's own
    objects. expected: of absent objects drawn at random for the same captions. Without an invention the share is 0.
    """
    found = {}
    for kind, belongs in {"theme": _of_theme, "likely": _expected}.items():
        own = [(row, belongs(row, among)) for row in rows]
        known = [(row, names) for row, names in own if names]
        if not known:
            continue
        each = np.array([_shares(row, names, among) for row, names in known])
        invented, belonging, by_luck = each.T
        shares = intervals({"share": Ratio(belonging, invented), "expected": Ratio(by_luck, invented)}, seed=seed)
        found[kind] = {
            "n": len(known),
            "invented": int(invented.sum()),
            **{name: as_estimate(x, len(known)) for name, x in shares.items()},
            "times": shares["share"].value / shares["expected"].value if shares["expected"].value else 0.0,
        }
    return found


def detectors(rows: Sequence[Row], *, seed: int) -> dict[str, Any]:
    """AUROC of what is read at the first token of each object's name, and what striking its suspects does (striking).

    token_divergence (T-VHD), summed_ratio (SVAR), and what a detector has to beat: log_probability of the token and
    step (how late it is said), are one number for a word; divergence and image_mass are those of heads, chosen on one
    half of the captions and judged on the other. A low number betrays an invented object, and a late step.
    A detector that can't be judged says why instead.
    """
    words = [(row, one, i) for row in rows if "per_head" in row for i, one in enumerate(row["mentions"])]
    invented = np.array([one["invented"] for _, one, _ in words], dtype=bool)
    pictures = np.array([row["picture"] for row, _, _ in words])
    found: dict[str, Any] = {"words": len(words), "invented": int(invented.sum())}
    for name in ("token_divergence", "summed_ratio", "log_probability", "step"):
        values = [one["step"] if name == "step" else -row[name][one["step"]] for row, one, _ in words]
        found[name] = _judged(partial(_by_word, rows, np.array(values, dtype=float), invented, pictures, seed=seed))
    for name in ("divergence", "image_mass"):
        values = [row["at_mentions"][i][name] for row, _, i in words]
        found[f"{name}_of_heads"] = _judged(partial(_by_heads, rows, values, invented, pictures, seed=seed))
    return found


def _by_word(rows: Sequence[Row], scores: Numbers, invented: Flags, pictures: NDArray[Any], *, seed: int
) -> dict[str, Any]:  # fmt: skip
    judged = auroc_interval(scores, invented, pictures, seed=seed)
    return {**judged, "struck": _judged(partial(_struck, rows, scores, invented, pictures, seed=seed))}


def _by_heads(rows: Sequence[Row], values: Sequence[Any], invented: Flags, pictures: NDArray[Any], *, seed: int
) -> dict[str, Any]:  # fmt: skip
    if not values:
        raise HeadscopeError("The captions name no object, so there is none to detect.")
    features = DataArray(np.array(values, dtype=float), dims=("word", "layer", "head"))
    top = min(DETECTING_HEADS, features[0].size)
    scores, heads = suspicion(features, invented, pictures, seed=seed, top=top)
    judged = judge(scores, invented, pictures, seed=seed)
    return {**judged, "heads": heads, "struck": _judged(partial(_struck, rows, scores, invented, pictures, seed=seed))}


def _struck(rows: Sequence[Row], scores: Numbers, invented: Flags, pictures: NDArray[Any], *, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Captions without their suspects; the threshold is set on one half of them and judged on the other."""
    first = split(pictures, seed=seed)
    if invented[first].all():
        raise HeadscopeError("The choosing half of the captions names no true object: use more captions.")
    limit = striking.threshold(scores[first], invented[first])
    struck, at = scores > limit, 0
    whole, left = {}, {}
    for row in rows:
        if "per_head" in row:
            own = struck[at : at + len(row["mentions"])]
            at += len(own)
            kept = [one for one, gone in zip(row["mentions"], own, strict=True) if not gone]
            whole[row["picture"]], left[row["picture"]] = caption_counts(row), caption_counts({**row, "mentions": kept})
    return {"threshold": limit, **striking.judge(whole, left, struck, invented, pictures, seed=seed)}


def _judged(judge: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return judge()
    except HeadscopeError as error:
        return {"why_not": str(error)}


def _of_theme(row: Row, among: PictureSet) -> frozenset[str]:
    """The objects of the theme that the caption names first; none where it names none."""
    said = {row["caption"].find(phrase): objects for phrase, objects in among.themes.items()}
    there = [at for at in said if at >= 0]
    return said[min(there)] if there else frozenset()


def _expected(row: Row, among: PictureSet) -> frozenset[str]:
    return frozenset(row["likely"])


def _shares(row: Row, belonging: frozenset[str], among: PictureSet) -> tuple[float, float, float]:
    """Objects invented, those of them that belong, and those that would by luck."""
    shown = {one["name"] for one in row["objects"]}
    invented = {one["name"] for one in row["mentions"] if one["invented"]}
    absent = [name for name in among.vocabulary.names if name not in shown]
    luck = sum(name in belonging for name in absent) / len(absent) if absent else 0.0
    return len(invented), len(invented & belonging), luck * len(invented)
