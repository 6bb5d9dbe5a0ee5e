"""A run of `headscope sinks` on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.runs import Run
from analysis.uncertainty import interval

console = Console()


def show(run: Run) -> None:
    """Per layer, by kind of prompt, the tokens, the massive activations, the heads."""
    summary = run.summary()
    judged, bos = summary["judged_on"], summary["bos"]
    begun = f"with {bos['token']!r}" if judged["bos"] else "without a first token of its own"
    console.print(
        f"{summary['counts']['sink_heads']} of {summary['counts']['heads']} heads park more than "
        f"{summary['threshold']} of their attention on the first token in at least "
        f"{summary['counts']['sink_head_rate']:.0%} of {judged['n']} prompts ({judged['kind']}, {escape(begun)}); the "
        f"first token takes {_shown(summary['overall']['first_share'])} of all attention."
    )
    if bos["token"] is None:
        console.print("The tokenizer has no token that begins a text: every prompt stands without one.")
    console.print(_layers(summary))
    console.print(_conditions(summary))
    console.print(_tokens(summary))
    console.print(
        f"A sink: at least {summary['found_by']['heads']:.0%} of all heads park on it, and "
        f"{summary['found_by']['queries']} queries see it. Delimiters take "
        f"{_shown(summary['overall']['delimiter_share'])} of the attention to keys after the first, of which they are "
        f"{summary['delimiter_keys']:.2f}."
    )
    console.print(_massive(summary["massive"]))
    parked = ", ".join(f"{row['head']} {_shown(row['sink_rate'])}" for row in summary["sink_heads"])
    console.print(f"The heads that park most often: {parked}")
    silent = ", ".join(f"{row['head']} {row['write']['value']:.3f}" for row in summary["do_nothing_heads"])
    console.print(f"The heads that write least, by the residual stream they write to: {silent}")


def _layers(summary: Mapping[str, Any]) -> Table:
    columns = {
        "sink_share_rest": "other sinks",
        "sink_contribution": "sinks' part of the output",
        "value_ratio": "a sink's value",
        "write": "write",
        "unspent": "unspent",
    }
    present = [name for name in columns if name in summary["layers"][0]]
    table = Table("layer", "sink rate", "first token", *(columns[name] for name in present))
    for row in summary["layers"]:
        sure = _shown(row["sink_rate"]), _shown(row["first_share"])
        table.add_row(str(row["layer"]), *sure, *(f"{row[name]['value']:.2f}" for name in present))
    table.caption = "shares of attention; value: by the median of the others; write: by the residual stream"
    return table


def _conditions(summary: Mapping[str, Any]) -> Table:
    table = Table("prompts", "n", "sink rate", "first token", "other sinks", "sinks in each")
    for row in summary["by_condition"]:
        begun = "with" if row["bos"] else "without"
        table.add_row(
            f"{row['kind']} {row['length'] or 'whole'}, {begun} BOS", str(row["n"]), _shown(row["sink_rate"]),
            _shown(row["first_share"]), f"{row['sink_share_rest']['value']:.2f}",
            f"{row['sinks_per_prompt']['value']:.1f}",
        )  # fmt: skip
    return table


def _tokens(summary: Mapping[str, Any]) -> Table:
    table = Table("prompts", "sink token", "where", "in prompts", "a sink in", "receives")
    for row in summary["sink_tokens"]:
        table.add_row(
            row["kind"], escape(repr(row["token"])), "first" if row["first"] else "later", str(row["prompts"]),
            str(row["sink_in"]), f"{row['received']:.2f}",
        )  # fmt: skip
    return table


def _massive(found: Mapping[str, Any]) -> Table:
    table = Table("massive coordinate", "layers", "in prompts", "mean", "times the median", "on")
    by_coordinate: dict[int, list[Mapping[str, Any]]] = {}
    for row in found["massive"]:
        by_coordinate.setdefault(row["coordinate"], []).append(row)
    for coordinate, rows in by_coordinate.items():
        largest = max(rows, key=lambda row: abs(row["value"]))
        layers = f"{rows[0]['layer']} to {rows[-1]['layer']}" if len(rows) > 1 else str(rows[0]["layer"])
        tokens = ", ".join(repr(each["token"]) for each in largest["tokens"][:3])
        table.add_row(
            str(coordinate), layers, _shown(largest["share"]), f"{largest['value']:.0f}",
            f"{largest['times_median']:.0f}", escape(tokens),
        )  # fmt: skip
    if not by_coordinate:
        table.add_row("none", "", "", "", "", "")
    criterion = found["criterion"]
    table.caption = f"above {criterion['size']:g} and {criterion['ratio']:g} times the median; mean where it is largest"
    return table


def _shown(estimate: Mapping[str, Any]) -> str:
    return interval(estimate).replace("[", r"\[")
