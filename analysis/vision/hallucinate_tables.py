"""A run of `headscope hallucinate` on the terminal: one row per arm."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis.runs import Run
from analysis.uncertainty import interval

console = Console()
NONE = "none"


def show(run: Run) -> None:
    """Per set what each arm says and answers, what it changes, and what papers report."""
    summary = run.summary()
    order = [arm["name"] for arm in summary["arms"]]
    for name, found in summary["sets"].items():
        arms = {arm: found["arms"][arm] for arm in order}
        console.print(f"\n[bold]{escape(name)}[/], {found['n']} pictures ({summary['part']})")
        if "captions" in summary["tasks"]:
            console.print(_captions(arms))
            console.print(_changes(arms))
        if "pope" in summary["tasks"]:
            console.print(_pope(arms))
        for line in _controls(arms):
            console.print(line)
    console.print(_published(summary["published"]))


def _captions(arms: Mapping[str, Any]) -> Table:
    table = Table("captions", "CHAIR_i", "recall", "F1", "CHAIR_s", "tokens", "Cog")
    for name, arm in arms.items():
        chair, cog = arm["captions"]["chair"], arm["captions"]["amber"]["cog"]
        cells = [_shown(chair[metric]) for metric in ("chair_i", "recall", "f1")]
        plain = f"{chair['chair_s']['value']:.2f}", f"{chair['tokens']['value']:.1f}", f"{cog['value']:.2f}"
        table.add_row(_name(name), *cells, *plain)
    table.caption = "Cog: AMBER's share of objects that one expects and that are not there"
    return table


def _changes(arms: Mapping[str, Any]) -> Table:
    table = Table("minus none", "CHAIR_i", "recall", "length", "verdict")
    for name, arm in arms.items():
        if (change := arm["captions"].get("to_none")) is None:
            continue
        difference = change["difference"]
        cells = [_shown(difference[metric]) for metric in ("chair_i", "recall")]
        word = change["verdict"] + (", another length" if change["length_changed"] else "")
        table.add_row(_name(name), *cells, f"{difference['length_change']['value']:+.0%}", word)
    return table


def _pope(arms: Mapping[str, Any]) -> Table:
    table = Table("POPE F1", "mean", "minus none", "rand.", "pop.", "adv.", "yes")
    for name, arm in arms.items():
        own = arm["pope"]
        splits = own["splits"]
        change = _shown(own["to_none"]["mean_f1"]) if "to_none" in own else ""
        each = [f"{splits[split]['f1']['value']:.2f}" for split in ("random", "popular", "adversarial")]
        yes = sum(found["yes_ratio"]["value"] for found in splits.values()) / len(splits)
        table.add_row(_name(name), _shown(own["mean_f1"]), change, *each, f"{yes:.2f}")
    return table


def _controls(arms: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, arm in arms.items():
        for control in arm.get("captions", {}).get("to_controls", []):
            difference = control["difference"]
            lines.append(
                f"{escape(name)} against {escape(control['arm'].removeprefix(name + ', '))}: {control['verdict']}; "
                f"CHAIR_i {_shown(difference['chair_i'])}, recall {_shown(difference['recall'])}"
            )
    return lines


def _published(rows: Sequence[Mapping[str, Any]]) -> Table:
    sources = list(dict.fromkeys(row["source"] for row in rows))
    table = Table("published", "CHAIR_i", "CHAIR_s", "F1", "length", "by")
    for row in rows:
        f1, length = ("" if row[name] is None else f"{row[name]:.3g}" for name in ("f1", "length"))
        numbers = f"{row['chair_i']:.3f}", f"{row['chair_s']:.3f}", f1, length
        table.add_row(row["arm"], *numbers, str(1 + sources.index(row["source"])))
    listed = "; ".join(f"{i + 1}: {source}" for i, source in enumerate(sources))
    table.caption = f"LLaVA-1.5-7B, COCO images, up to 512 tokens. {listed}"
    return table


def _name(arm: str) -> Text:
    """Folded where it is long, and never cut."""
    return Text(arm, overflow="fold")


def _shown(estimate: Mapping[str, Any]) -> str:
    return interval(estimate).replace("[", r"\[")
