"""A run on the terminal: as tables, or as JSON for machines."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.runs import Run
from analysis.uncertainty import interval

WORDS = {"decode": "decoding", "prefill": "prefill", "both": "prefill and decoding"}
console = Console()


@dataclass(frozen=True)
class Handling:
    """How the work is done: nothing here changes the results, but for the rounding of several workers."""

    out: Path
    resume: str | None
    workers: int
    as_json: bool
    dry_run: bool


def show(run: Run) -> None:
    """A finished run as tables; an unfinished one as a sentence."""
    manifest = run.manifest
    if not run.finished:
        console.print(f"{run.id}: {manifest['state']}, {len(run.cases())} of {manifest.get('total_cases', '?')} cases.")
        return
    summary, model = run.summary(), manifest["model"]
    console.print(
        f"\n[bold]{manifest['command']}[/] of {model['name']} ({model['dtype']}, {model['device']}), "
        f"{summary['n_cases']} cases, 95 % intervals over cases"
    )
    _SHOWN[manifest["command"]](summary)
    console.print(f"Run: {run.path}")


def _show_retrieval(summary: dict[str, Any]) -> None:
    console.print(
        f"Needle accuracy {_interval(summary['accuracy'])}; {len(summary['failures'])} cases failed the gate."
    )
    if not summary["top"]:
        console.print("No case was answered, so no head has a score: try shorter lengths or look at the responses.")
        return
    console.print(f"Scores are means over the {summary['n_passed']} answered cases.")
    table = Table("head", "retrieval score", "interval", "active in", "LOCOS")
    for row in summary["top"]:
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        table.add_row(row["head"], f"{row['score']:.2f}", interval, f"{row['frequency']:.0%}", f"{row['locos']:.3f}")
    console.print(table)
    console.print(
        f"{summary['heads_at_threshold']} heads ({summary['share_at_threshold']:.1%}) score {summary['threshold']} or "
        f"more, {summary['zero_share']:.0%} score 0."
    )
    if summary["stability"]:
        k = summary["stability"]["k"]
        console.print(
            f"Two halves of the cases share {summary['stability']['overlap']} of their top {k} heads; "
            f"LOCOS shares {summary['locos_overlap']} of {k} with the retrieval score."
        )


def _show_ablation(summary: dict[str, Any]) -> None:
    console.print(f"Needle accuracy as the model is: {_interval(summary['baseline'])}")
    for meaning, phase in dict.fromkeys((row["meaning"], row["phase"]) for row in summary["curve"]):
        table = Table("K", "top silenced", "random silenced", "sets", "difference")
        for row in summary["curve"]:
            if (row["meaning"], row["phase"]) == (meaning, phase):
                each = row["control"]["each"]
                top, random, difference = (_interval(row[name]) for name in ("ablated", "control", "difference"))
                table.add_row(str(row["k"]), top, random, f"{min(each):.2f}, {max(each):.2f}", difference)
        console.print(f"\n[bold]{meaning}[/] during {WORDS[phase]}")
        console.print(table)
    console.print(
        f"random: {len(each)} sets of as many heads of the same layers; sets: the worst and the best of them; "
        "difference: random minus top, paired."
    )


def _interval(estimate: dict[str, Any]) -> str:
    return interval(estimate).replace("[", r"\[")


def report(run: Run, handling: Handling) -> None:
    if handling.as_json:
        print_json(run)
    else:
        show(run)


def print_json(run: Run) -> None:
    """The run's summary for machines; null for a run that has not ended."""
    summary = run.summary() if run.finished else None
    print(json.dumps({"run": str(run.path), "state": run.manifest["state"], "summary": summary}, indent=1))


def _show_points(summary: dict[str, Any]) -> None:
    for name, task in summary["tasks"].items():
        table = Table("", task["metric"], "minus baseline", "p", "random heads", "minus random", "better / worse")
        table.add_row("baseline", _estimate(task["points"][0]["baseline"]))
        for row in task["points"]:
            change, control, gap = (row[part] for part in ("treated_to_baseline", "control", "treated_to_control"))
            table.add_row(
                escape(row["name"]),
                _estimate(row["treated"]),
                _estimate(change["difference"]),
                f"{row['p_holm']:.2g}",
                _estimate(control) if control else "none",
                _estimate(gap["difference"]) if gap else "",
                f"{change['improved']} / {change['worsened']} of {row['n']}",
            )
        console.print(f"\n[bold]{escape(name)}[/]: {task['about']} ({task['better']} is better, n = {task['n']})")
        console.print(table)
        for warning in dict.fromkeys(warning for row in task["points"] for warning in row["warnings"]):
            console.print(f"  {escape(warning)}", style="yellow")
    for row in next(iter(summary["tasks"].values()))["points"]:
        console.print(f"{escape(row['name'])}: {escape(_shortened(row['intervention']))}")
        applied = summary["applied"][row["name"]]
        paths = "; ".join(f"{phase}: {', '.join(taken)}" for phase, taken in applied["paths"].items())
        lost = [
            f"{applied[key]} rows {words}"
            for key, words in (
                ("rows_without_key", "saw no key any more"),
                ("rows_without_target", "had nothing to move attention to"),
            )
            if applied[key]
        ]
        console.print(f"  computed by {'; '.join([paths or 'queries and outputs', *lost])}")
    console.print("p: of the difference to the baseline, corrected for the points of the task (Holm).")


def _shortened(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _estimate(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3g}"
    return f"{estimate['value']:.3g} \\[{estimate['low']:.3g}, {estimate['high']:.3g}]"


_SHOWN = {
    "retrieval": _show_retrieval,
    "ablation": _show_ablation,
    "intervene": _show_points,
    "sweep": _show_points,
}
