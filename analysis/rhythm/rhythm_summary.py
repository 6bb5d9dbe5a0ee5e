"""From the records of a rhythm run to its answers: head sets, spans, couplings, what forcing tokens changes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.retrieval import head_frame
from analysis.rhythm import couplings
from analysis.rhythm.cross_fit import agreement, choose, chosen_without, mean_over, per_trace, shared
from analysis.rhythm.curves import curves_of
from analysis.rhythm.head_sets import sink_overlap
from analysis.rhythm.marks import LAG
from analysis.rhythm.peaks import PeakRule
from analysis.rhythm.perturbation_summary import PUBLISHED, perturbation_test
from analysis.rhythm.receivers import RECEIVERS
from analysis.rhythm.sensitivity import sensitivity
from analysis.rhythm.settings import Setting
from analysis.rhythm.verdicts import with_verdicts
from analysis.uncertainty import CONFIDENCE, estimate, wilson

Record = Mapping[str, Any]

METRICS = ("distance", "distance_without_sink", "sink_mass", "receiver_kurtosis")


def head_table(records: Sequence[Record], *, seed: int) -> pd.DataFrame:
    """A row per head and metric: mean over the traces that have it, with its interval; no row where none has it."""
    frame = head_frame({name: per_trace(records, name) for name in METRICS}, seed=seed)
    for row in frame.index[frame["value"].isna()]:
        metric, layer, head = frame.loc[row, ["metric", "layer", "head"]]
        values = per_trace(records, metric)[:, layer, head]
        known = values[np.isfinite(values)]
        if known.size:
            found = estimate(known, seed=seed)
            frame.loc[row, list(found)] = list(found.values())
    return frame.dropna(subset="value").reset_index(drop=True)


def summarise(
    records: Sequence[Record],
    folder: Path,
    setting: Setting,
    rule: PeakRule,
    *,
    horizons: Sequence[str],
    vary: bool,
    seed: int,
) -> dict[str, Any]:
    """The answers of a run as plain data. folder: of the kept arrays. vary: whether to judge other settings too."""
    return {
        "n_cases": len(records),
        "confidence": CONFIDENCE,
        "correction": "intervals are over traces, for each number alone: not corrected for many",
        "judged_by": "heads chosen on the other half of the traces" if len(records) > 1 else "the trace's own heads",
        "settings": {**setting.as_facts(), "peaks": str(rule), "receivers": RECEIVERS, "lag": LAG},
        "sets": head_sets_found(records, setting, seed=seed),
        "spans": spans(records, seed=seed),
        "couplings": judged(records, folder, setting, rule, horizons=horizons, seed=seed),
        "perturbation": forced(records, seed=seed),
        "sensitivity": sensitivity(records, folder, setting, rule, horizons=horizons, seed=seed) if vary else None,
        "accuracy": accuracy(records),
        "published": {"couplings": couplings.PUBLISHED, "perturbation": dict(PUBLISHED)},
    }


def head_sets_found(records: Sequence[Record], setting: Setting, *, seed: int) -> dict[str, Any]:
    """The sets of all traces, how far two halves agree on them, and which global heads are sink heads."""
    chosen = choose(records, setting)
    return {
        "local": [str(head) for head in chosen.sets.local],
        "global": [str(head) for head in chosen.sets.global_],
        "receivers": [str(head) for head in chosen.receivers],
        "layers": list(chosen.sets.layers),
        "receivers_from": int(np.isfinite(per_trace(records, "receiver_kurtosis")).any((1, 2)).sum()),
        "receivers_among_global": shared(chosen.receivers, chosen.sets.global_, mean_over(records, "sink_mass").size),
        "halves": agreement(records, setting, seed=seed),
        "sinks": sink_overlap(chosen.sets, mean_over(records, "sink_mass")),
    }


def spans(records: Sequence[Record], *, seed: int) -> list[dict[str, Any]]:
    """For each layer the means over its heads, with intervals over traces."""
    names = ("distance", "distance_without_sink", "sink_mass")
    table = {name: np.nanmean(per_trace(records, name), axis=-1) for name in names}
    return [
        {"layer": layer} | {name: estimate(values[:, layer], seed=seed) for name, values in table.items()}
        for layer in range(table["distance"].shape[1])
    ]


def judged(
    records: Sequence[Record],
    folder: Path,
    setting: Setting,
    rule: PeakRule,
    *,
    horizons: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """The couplings with their verdicts, and two beside them that the paper does not have.

    next_entropy: the entropy of what follows a WAAD peak instead of the peak's own.
    receiver_apart: receivers against global heads that are no receivers, for a head in both sets agrees with itself.
    """
    chosen = chosen_without(records, setting, seed=seed)
    apart = [each.apart() or each for each in chosen]
    curves, others = curves_of(
        records, folder, [(setting, chosen), (setting, apart)], horizons=horizons, windows=[setting.window]
    )
    after = [
        replace(each, entropy=np.array(record["next_entropy"], dtype=float), receiver_fai=None)
        for each, record in zip(curves, records, strict=True)
    ]
    judge = partial(couplings.couplings, rule=rule, seed=seed)
    every = {**judge(curves), "next_entropy": judge(after)["entropy"], "receiver_apart": None}
    if all(each.apart() for each in chosen):
        every["receiver_apart"] = judge(others)["receiver"]
    return {name: each if name == "peaks" else with_verdicts(each) for name, each in every.items()}


def forced(records: Sequence[Record], *, seed: int) -> dict[str, Any] | None:
    """The paired test over the traces on which other tokens were forced; None where there were none."""
    found = [record["perturbation"] for record in records if "perturbation" in record]
    return {"traces": len(found), **perturbation_test(found, seed=seed)} if found else None


def accuracy(records: Sequence[Record]) -> dict[str, Any] | None:
    """Share of traces that end with the right answer, of those whose answer is known; None where it is of none."""
    known = [record["correct"] for record in records if record["correct"] is not None]
    if not known:
        return None
    share = sum(known) / len(known)
    low, high = wilson(share, len(known))
    return {"value": share, "low": low, "high": high, "n": len(known)}
