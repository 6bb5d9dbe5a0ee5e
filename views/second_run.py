"""A second run beside the first: which ones there are, and what was asked differently."""

from typing import Any

from analysis.runs import Run
from views import metrics, reading
from views.address import pick
from views.run_words import plain, words_of

COMMANDS = ("retrieval", "sinks", "heads", "vision", "rhythm")  # whose runs hold numbers of every head
LONG = {"sha256", "texts", "case_ids"}  # parts of a request that say nothing to a reader


def candidates(run: Run) -> list[Run]:
    """Finished runs of models with as many layers and heads, this one left out; those of the same command first."""
    found = [
        other
        for other in reading.runs()[0]
        if other.id != run.id
        and other.finished
        and reading.command(other) in COMMANDS
        and _size(other) == _size(run)
        and (other.path / "heads.parquet").exists()
    ]
    return sorted(found, key=lambda other: reading.command(other) != reading.command(run))


def measuring(others: list[Run], run: Run, metric: str) -> list[Run]:
    """Those of `others` whose command measures the metric."""
    same = reading.command(run)
    return [
        other
        for other in others
        if reading.command(other) == same or metric in metrics.METRICS.get(reading.command(other), {})
    ]


def choose_second(run: Run, others: list[Run], label: str, place: Any) -> Run:
    """One of `others`, held in the URL as `with`."""
    runs = {other.id: other for other in others}
    words = words_of(others) | ({run.id: "this run"} if run.id in runs else {})
    return runs[pick(label, "with", list(runs), words=words.__getitem__, place=place)]


def differ_in(run: Run, other: Run) -> str:
    """What was asked differently, in one sentence."""
    if reading.command(run) != reading.command(other):
        return f"The other is a run of headscope {reading.command(other)}."
    first, second = (each.manifest.get("request", {}) for each in (run, other))
    names = [name for name in {**first, **second} if first.get(name) != second.get(name) and name not in LONG]
    parts = [f"{name} ({_short(first.get(name))}; the other {_short(second.get(name))})" for name in names]
    return f"The runs differ in {', '.join(parts)}." if parts else "Both runs asked the same."


def _size(run: Run) -> tuple[Any, Any]:
    model = run.manifest.get("model", {})
    return model.get("layers"), model.get("heads")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return plain(text if len(text) <= 40 else f"{text[:39]}…")
