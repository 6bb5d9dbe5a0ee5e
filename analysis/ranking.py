"""Which heads are strong? Scores of every head from a run, or from a list that others have published; and back."""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.head_lists import (
    HeadTable,
    Shape,
    check,
    duo_files,
    names_json,
    read_heads,
    scores_json,
    spread_to_heads,
)
from analysis.retrieval import RETRIEVAL_THRESHOLD
from analysis.runs import Run, writing
from analysis.selection import Scores
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.subject import Subject

FORMS = ("scores", "names", "duo")
LISTED = "listed"  # the metric of heads that a file names or scores


def is_list(path: Path) -> bool:
    """Whether heads come from a file, or a folder as DuoAttention ships it, and not from a run."""
    return path.is_file() or (path.is_dir() and not (path / "manifest.json").exists() and path.name != "last")


def listed_scores(path: Path, subject: Subject) -> Scores:
    first = subject.anatomy.decoder[0]
    shape = Shape(subject.anatomy.layers, first.query_heads, first.kv_heads)
    table = spread_to_heads(check(read_heads(path), shape), shape)
    return Scores(table.frame.assign(metric=LISTED))


def run_scores(source: Run, subject: Subject) -> tuple[Scores, frozenset[Head]]:
    """The metrics of a run, and the heads that no control may hold: those at or above the retrieval threshold."""
    frame = source.heads()
    if frame.empty:
        raise HeadscopeError(f"In the run {source.id} no case was answered, so it ranks no head: try shorter lengths.")
    heads = {Head(int(layer), int(head)) for layer, head in frame[["layer", "head"]].to_numpy()}
    if heads != set(subject.anatomy.heads()) or source.manifest["model"].get("sha256") != subject.sha256:
        raise HeadscopeError(f"The run {source.id} ranked the heads of another model than {subject.name}.")
    strong = frame[(frame["metric"] == "retrieval_score") & (frame["value"] >= RETRIEVAL_THRESHOLD)]
    protected = frozenset(Head(int(layer), int(head)) for layer, head in strong[["layer", "head"]].to_numpy())
    return Scores(frame, ties="needle_mass"), protected


def exported(run: Run, metric: str, form: str, *, top: int, sink: int, window: int) -> dict[str, str]:
    """File names and what they hold: a run's heads in one of FORMS, which `read_heads` and their authors' code read.

    top: how many of the strongest a list names. sink, window: what DuoAttention's streaming groups keep.
    Raises HeadscopeError for a metric that the run did not measure, and where a form can't hold its values.
    """
    if form not in FORMS:
        raise HeadscopeError(f"--format: {form!r} is none of {', '.join(FORMS)}.")
    values = Scores(run.heads(), ties="needle_mass").values(metric)
    ranked = sorted(values, key=lambda head: values[head], reverse=True)
    rows = [(head.layer, head.head, values[head][0]) for head in (ranked[:top] if form == "names" else sorted(values))]
    table = HeadTable(pd.DataFrame(rows, columns=["layer", "head", "value"]))
    if form == "duo":
        model = run.manifest["model"]
        return duo_files(table, Shape(model["layers"], model["heads"], model["kv_heads"]), sink=sink, window=window)
    return {f"{metric}.json": scores_json(table) if form == "scores" else names_json(table)}


def export(run: Run, folder: Path, **asked: Any) -> list[Path]:
    """Write what `exported` makes into a folder; returns the files. Nothing that exists is overwritten."""
    made = {folder / name: text for name, text in exported(run, **asked).items()}
    if there := [path for path in made if path.exists()]:
        raise HeadscopeError(f"{there[0]} exists already: choose another --to, or delete it first.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in made.items():
            path.write_text(text)
    return list(made)
