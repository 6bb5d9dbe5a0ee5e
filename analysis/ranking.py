"""Which heads are strong? Scores of every head from a run, or from a list that others have published."""

from pathlib import Path

from analysis.head_lists import Shape, check, read_heads, spread_to_heads
from analysis.retrieval import RETRIEVAL_THRESHOLD
from analysis.runs import Run
from analysis.selection import Scores
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.subject import Subject

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
