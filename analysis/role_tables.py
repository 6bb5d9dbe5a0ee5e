"""What every head is for, on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.runs import Run
from analysis.uncertainty import interval

STRONGEST = 5
GROUPS = {"retrieval": "retrieval heads", "others": "the other heads"}
console = Console()


def show(run: Run) -> None:
    """Roles with their counts, the strongest heads of each, what they share, and what is left."""
    summary = run.summary()
    roles = {name: summary["roles"][name] for name in summary["role_names"]}
    evidence = {row["head"]: row["evidence"] for row in summary["heads"]}
    console.print(_roles(roles))
    console.print(_strongest(roles, evidence))
    console.print(_overlap(summary["overlap"]))
    left = summary["unexplained"]
    console.print(
        f"{len(left['heads'])} of {left['n']} heads ({_estimate(left)}) have no confirmed role; "
        f"{left['expected']:.2f} if the same roles fell on heads by chance."
    )
    if summary["retrieval_from"]:
        console.print(f"Retrieval scores are those of the run {summary['retrieval_from']}.")
    if summary["needle_absent"]:
        _show_needle_absent(summary["needle_absent"])
    console.print(f"Roles were chosen on one half of the prompts; {escape(summary['correction'])}.")


def _roles(roles: Mapping[str, Any]) -> Table:
    table = Table("role", "threshold", "chosen", "confirmed", "share confirmed", "what counts")
    for name, role in roles.items():
        threshold = f"{'at least' if role['above'] else 'below'} {role['threshold']:g}"
        if role["chosen"] is None:
            table.add_row(name, threshold, "not measured", "", "", role["about"])
            continue
        share = _estimate(role["confirmed"]) if role["confirmed"] else ""
        kept = len(role["confirmed_heads"])
        table.add_row(name, threshold, str(role["chosen"]), str(kept), share, role["about"])
    return table


def _strongest(roles: Mapping[str, Any], evidence: Mapping[str, Any]) -> Table:
    table = Table("role", f"its {STRONGEST} strongest heads, by the prompts that had no say in the choice")
    for name, role in roles.items():
        heads = role["confirmed_heads"][:STRONGEST]
        found = [f"{head} {_judged(evidence[head][role['metric']])}" for head in heads]
        table.add_row(name, ", ".join(found) or "none")
    return table


def _judged(found: Mapping[str, float]) -> str:
    return rf"{found['judged']:.3g} \[{found['low']:.3g}, {found['high']:.3g}]"


def _overlap(overlap: Mapping[str, Any]) -> Table:
    table = Table("heads of both (by chance)", *overlap["roles"])
    for i, name in enumerate(overlap["roles"]):
        cells = [
            str(count) if i == j else f"{count} ({overlap['expected'][i][j]:.1f})"
            for j, count in enumerate(overlap["counts"][i])
        ]
        table.add_row(name, *cells)
    return table


def _show_needle_absent(found: Mapping[str, Any]) -> None:
    table = Table("attention on sinks", "needle present", "needle absent", "difference")
    for name, words in GROUPS.items():
        if row := found[name]:
            cells = (_estimate(row[part]) for part in ("present", "absent", "difference"))
            table.add_row(f"{row['heads']} {words}", *cells)
    console.print(table)
    console.print(f"while the model answers, over {found['n']} cases with the needle and without; paired.")


def _estimate(estimate: Mapping[str, Any]) -> str:
    return interval(estimate).replace("[", r"\[")
