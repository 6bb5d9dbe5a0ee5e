"""What do the weights say a head does? Copying scores, circuits of chosen heads, and who composes with whom.

    headscope circuits --heads "top(copying, 5)" --text " Paris dog seven"     # or python -m analysis.circuit

No prompt is run: everything is read off the weights (analysis.circuits, analysis.composition).
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from analysis.circuits import copying, sought, written
from analysis.composition import composition
from analysis.display import Handling, console, report
from analysis.runs import OpenRun, Run, rounded
from analysis.selection import Scores, select
from analysis.study import ModelChoice
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.sources import DEFAULT_MODEL
from probes.subject import Subject

PAIRS = 10
WORDS = 6  # tokens that each head is said to write
METRICS = ("copying", "composition_Q", "composition_K", "composition_V")


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    heads: str
    text: str
    model: str | None
    device: str | None
    dtype: str | None


def circuits(asked: Asked, handling: Handling) -> Run | None:
    """Read the weights; returns the finished run, or None for a dry run."""
    choice = ModelChoice(asked.model or DEFAULT_MODEL, asked.device, asked.dtype)
    subject = choice.load()
    tokens = subject.tokenizer(asked.text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise HeadscopeError("--text is empty: give some words whose tokens the heads read.")
    nothing = xr.DataArray(np.zeros((subject.anatomy.layers, subject.anatomy.query_heads)), dims=("layer", "head"))
    select(asked.heads, subject.anatomy, Scores(_frame(dict.fromkeys(METRICS, nothing))))  # refused before it begins
    if handling.dry_run:
        console.print(f"The weights of {len(subject.anatomy.heads())} heads of {subject.name}. Nothing was read.")
        return None
    facts = {**asdict(asked), "model": choice.model, "dtype": subject.dtype, "sha256": subject.sha256}
    with OpenRun.start(handling.out, "circuits", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe(), total_cases=0)
            pairs = composition(subject)
            frame = _frame({"copying": copying(subject), **_most(pairs)})
            chosen = select(asked.heads, subject.anatomy, Scores(frame))
            run.finish(heads=frame, summary=_summary(subject, frame, pairs, chosen, tokens))
    report(run.run, handling)
    return run.run


def _most(pairs: xr.DataArray) -> dict[str, xr.DataArray]:
    """Per kind, how much each head reads of the head that it reads most; a first layer has none to read: 0."""
    most = pairs.max(("writer_layer", "writer")).fillna(0).rename(reader_layer="layer", reader="head")
    return {f"composition_{kind}": most.sel(kind=kind) for kind in most["kind"].values}


def _frame(metrics: dict[str, xr.DataArray]) -> pd.DataFrame:
    """A row per head and metric; weights have no spread, so that an interval is its value."""
    rows = []
    for metric, values in metrics.items():
        found = values.transpose("layer", "head").values.astype(float)
        layer, head = np.indices(found.shape)
        columns: dict[str, Any] = {"layer": layer, "head": head, "value": found, "low": found, "high": found}
        rows.append(pd.DataFrame({name: x.ravel() for name, x in columns.items()}).assign(metric=metric, n=1))
    return pd.concat(rows, ignore_index=True)[["layer", "head", "metric", "value", "low", "high", "n"]]


def _summary(
    subject: Subject, frame: pd.DataFrame, pairs: xr.DataArray, chosen: Sequence[Head], tokens: Sequence[int]
) -> dict[str, Any]:
    ids, heads = torch.tensor(tokens, device=subject.device), subject.anatomy.heads()
    writes, seeks = written(subject, chosen, ids), sought(subject, chosen, ids)
    everyone = written(subject, heads, ids, top=WORDS)
    scores = frame[frame["metric"] == "copying"].set_index(["layer", "head"])["value"]

    def words(circuit: xr.Dataset, head: int) -> list[list[str]]:
        return [[subject.tokenizer.decode([int(token)]) for token in row] for row in circuit["token"].values[head]]

    return {
        "n_cases": len(heads),
        "tokens": [subject.tokenizer.decode([token]) for token in tokens],
        "heads": [
            {"head": str(head), "copying": float(scores[head.layer, head.head]), "writes": words(writes, i),
             "seeks": words(seeks, i)}
            for i, head in enumerate(chosen)
        ],
        "every_head": [
            {"head": str(head), "writes": words(everyone, i), "reads": _reads(pairs, head),
             "read_by": _read_by(pairs, head)}
            for i, head in enumerate(heads)
        ],
        "composition": {str(kind): _strongest(pairs.sel(kind=kind)) for kind in pairs["kind"].values},
        "chance": float(pairs.attrs["chance"]),
    }  # fmt: skip


def _reads(pairs: xr.DataArray, head: Head) -> dict[str, dict[str, Any]]:
    """Per kind the head that this one reads most."""
    return _partner(pairs.sel(reader_layer=head.layer, reader=head.head, drop=True))


def _read_by(pairs: xr.DataArray, head: Head) -> dict[str, dict[str, Any]]:
    """Per kind the head that reads this one most."""
    return _partner(pairs.sel(writer_layer=head.layer, writer=head.head, drop=True))


def _partner(scores: xr.DataArray) -> dict[str, dict[str, Any]]:
    """scores: dims (kind, layer, head) in any names. No kind where there is no head to read, or none that could."""
    found = {}
    for kind, table in zip(scores["kind"].values, scores.values, strict=True):
        if not np.isnan(table).all():
            layer, head = np.unravel_index(int(np.nanargmax(table)), table.shape)
            found[str(kind)] = {"head": str(Head(int(layer), int(head))), "score": rounded(float(table[layer, head]))}
    return found


def _strongest(pairs: xr.DataArray) -> list[dict[str, Any]]:
    values = pairs.transpose("writer_layer", "writer", "reader_layer", "reader").values
    order = np.argsort(np.nan_to_num(values, nan=-np.inf), axis=None)[::-1][:PAIRS]
    found = []
    for place in order:
        a, i, b, j = (int(x) for x in np.unravel_index(place, values.shape))
        found.append({"writer": str(Head(a, i)), "reader": str(Head(b, j)), "score": float(values[a, i, b, j])})
    return found


if __name__ == "__main__":
    from analysis.cli import main

    main(["circuits", *sys.argv[1:]])
