"""A run of `headscope rhythm` on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.runs import Run
from analysis.uncertainty import interval

console = Console()
PAPER = "Qwen3-4B-Base, GSM8K"  # the model of the paper's own table
COUPLINGS = {
    "entropy": "entropy at WAAD peaks",
    "next_entropy": "entropy after them",
    "receiver": "receivers' peaks that are FAI peaks",
    "receiver_apart": "of other heads' FAI",
    "lag": "WAAD peaks with an FAI peak",
}
VARIED = {
    "window": "window (tokens)",
    "horizon": "horizon",
    "share": "share of heads",
    "layers": "layers",
    "exclude_sink": "sink left out",
}
LISTED = 8  # heads of each set by name


def show(run: Run) -> None:
    """The sets, the couplings beside the paper's, what forcing tokens changes, and how much hangs on each choice."""
    summary = run.summary()
    for line in _about(summary):
        console.print(line)
    console.print(_spans(summary["spans"]))
    for line in _sets(summary["sets"]):
        console.print(line)
    console.print(_couplings(summary))
    console.print(_gaps_kept(summary["couplings"]))
    if summary["perturbation"]:
        console.print(_perturbation(summary["perturbation"]))
    if summary["sensitivity"]:
        console.print(_sensitivity(summary["sensitivity"]))


def _about(summary: Mapping[str, Any]) -> list[str]:
    asked, counts = summary["settings"], summary["couplings"]["peaks"]
    layers = asked["layers"]
    whose = f"{layers} layers" if isinstance(layers, str) else f"layers {', '.join(map(str, layers))}"
    lines = [
        f"Window {asked['window']}, horizon {asked['horizon']}, {asked['share']:.0%} of the heads of {whose}"
        f"{', the sink left out' if asked['exclude_sink'] else ''}; peaks: {asked['peaks']}. Judged by "
        f"{summary['judged_by']}.",
        f"{counts['tokens']} tokens hold {counts['waad']} WAAD peaks and {counts['fai']} FAI peaks.",
    ]
    if summary["accuracy"]:
        lines.append(f"Right answers: {_shown(summary['accuracy'])} of {summary['accuracy']['n']}.")
    if summary["left_out"]:
        named = ", ".join(f"{escape(each['case'])} ({each['tokens']})" for each in summary["left_out"][:LISTED])
        more = ", ..." if len(summary["left_out"]) > LISTED else ""
        lines.append(f"Left out as too short, {len(summary['left_out'])} (tokens): {named}{more}")
    return lines


def _spans(layers: list[Mapping[str, Any]]) -> Table:
    table = Table("layer", "distance", "without the first token", "on the first token")
    for row in layers:
        numbers = (f"{row[name]['value']:.1f}" for name in ("distance", "distance_without_sink"))
        table.add_row(str(row["layer"]), *numbers, _shown(row["sink_mass"]))
    table.caption = "means over heads and over the tokens of each response; distances in tokens"
    return table


def _sets(sets: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in ("local", "global", "receivers"):
        heads = sets[name]
        if not heads:
            lines.append(f"[bold]{name}[/]: none; no trace has enough sentences to tell.")
            continue
        more = ", ..." if len(heads) > LISTED else ""
        line = f"[bold]{name}[/]: {len(heads)} heads, {', '.join(heads[:LISTED])}{more}"
        if sets["halves"]:
            half = sets["halves"][name]
            line += (
                f"; two halves of the traces share {half['shared']} of {half['size']} ({half['expected']:.0f} by luck)"
            )
        lines.append(line)
    if sets["receivers"]:
        both = sets["receivers_among_global"]
        lines.append(
            f"The receivers are known from the {sets['receivers_from']} traces with enough sentences; {both['shared']} "
            f"of {both['size']} are global heads ({both['expected']:.0f} by luck)."
        )
    sinks = sets["sinks"]
    lines.append(
        f"{sinks['global_sinks']} of {sinks['global']} global heads are sink heads (over {sinks['threshold']:g} on the "
        f"first token); {sinks['expected']:.0f} by luck."
    )
    return lines


def _couplings(summary: Mapping[str, Any]) -> Table:
    table = Table("coupling", "observed", "by luck", "lift", "paper's lift", "verdict")
    published = summary["published"]["couplings"][PAPER]
    for name, words in COUPLINGS.items():
        found, paper = summary["couplings"][name], published.get(name)
        theirs = f"{paper['lift']:+.0%}" if paper else ""
        if found is None:
            table.add_row(words, "nothing to judge", "", "", theirs, "")
            continue
        table.add_row(
            words, _shown(found["observed"]), _shown(found["null"]), _percent(found["lift"]), theirs, found["verdict"]
        )
    table.caption = f"luck as the paper has it; the paper's lift: {PAPER}"
    return table


def _gaps_kept(couplings: Mapping[str, Any]) -> Table:
    table = Table("coupling", "by luck", "lift", "p", "verdict")
    for name, words in COUPLINGS.items():
        if couplings[name]:
            found = couplings[name]["nulls"]["shift"]
            table.add_row(words, _shown(found["null"]), _percent(found["lift"]), f"{found['p']:.2g}", found["verdict"])
    table.caption = "luck that keeps the gaps between peaks"
    return table


def _perturbation(found: Mapping[str, Any]) -> Table:
    table = Table("forced tokens", "high FAI", "low FAI", "high minus low", "high is lower", "p")
    for choice, words in (("plain", "highest and lowest"), ("matched", "matched for depth")):
        for measure, what in (("survival", "forced"), ("unforced", "own token kept")):
            if found[choice]:
                each = found[choice][measure]
                estimates = (_shown(each[name]) for name in ("high", "low", "difference", "lower"))
                table.add_row(f"{words}, {what}", *estimates, f"{each['p']:.2g}")
    paper = found["published"]
    table.caption = (
        f"share of content words that survive; {found['traces']} traces. The paper: {paper['high']:.2f} and "
        f"{paper['low']:.2f}, lower in {paper['lower']:.0%} of {paper['n']:.0f}"
    )
    return table


def _sensitivity(rows: list[Mapping[str, Any]]) -> Table:
    table = Table("varied", "", "entropy", "receivers", "lag", "lag, gaps kept")
    for row in rows:
        mark = " (as asked)" if row["chosen"] else ""
        if row["why_not"]:
            table.add_row(VARIED[row["varied"]], f"{_value(row['value'])}{mark}", escape(row["why_not"]), "", "", "")
            continue
        lifts = [_percent(row[name]["lift"]) if row[name] else "none" for name in ("entropy", "receiver", "lag")]
        lifts.append(_percent(row["lag"]["gaps_kept"]) if row["lag"] else "none")
        table.add_row(VARIED[row["varied"]], f"{_value(row['value'])}{mark}", *lifts)
    table.caption = "lifts, each choice varied alone"
    return table


def _value(value: Any) -> str:
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else escape(f"{value}")


def _percent(lift: Mapping[str, Any]) -> str:
    return f"{lift['value']:+.0%} \\[{lift['low']:+.0%}, {lift['high']:+.0%}]"


def _shown(estimate: Mapping[str, Any]) -> str:
    return interval(estimate).replace("[", r"\[")
