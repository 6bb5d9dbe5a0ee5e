"""A run on the terminal: as tables, or as JSON for machines."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis import pair_tables, role_tables, sink_tables
from analysis.maps import map_tables
from analysis.rhythm import rhythm_tables
from analysis.runs import Run
from analysis.uncertainty import interval
from analysis.vision import hallucinate_tables, vision_tables

WORDS = {"decode": "decoding", "prefill": "prefill", "both": "prefill and decoding"}
BLOCKS = " ▁▂▃▄▅▆▇█"
MARGIN = 4  # columns for the name of a layer
RAISES, LOWERS = "dark_orange", "dodger_blue1"  # told apart by colour-blind eyes too
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
    model, counted = manifest["model"], _COUNTED.get(manifest["command"], "cases, 95 % intervals over cases")
    console.print(
        f"\n[bold]{manifest['command']}[/] of {model['name']} ({model['dtype']}, {model['device']}), "
        f"{run.summary()['n_cases']} {counted}"
    )
    _SHOWN[manifest["command"]](run)
    console.print(f"Run: {run.path}")


def _show_retrieval(run: Run) -> None:
    summary = run.summary()
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


def _show_ablation(run: Run) -> None:
    summary = run.summary()
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


def _show_points(run: Run) -> None:
    summary = run.summary()
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


def _show_stream(run: Run) -> None:
    _show_points(run)
    curve = run.summary()["curve"]
    table = Table("KV groups whole", "cache saved", "needle accuracy", "minus whole cache")
    for row in curve["rows"]:
        accuracy = {"value": row["accuracy"], "low": row["low"], "high": row["high"]}
        difference = {"value": row["difference"], "low": row["difference_low"], "high": row["difference_high"]}
        table.add_row(
            f"{row['full_groups']} of {curve['groups']}",
            f"{row['saved']:.1%}",
            _estimate(accuracy),
            _estimate(difference),
        )
    console.print(
        f"\n[bold]Cache saved[/] at {curve['tokens']:.0f} tokens, sink {curve['sink']}, window {curve['window']}"
    )
    console.print(table)
    best = curve["operating_point"]
    if best is None:
        console.print(f"No point keeps the needle accuracy within {curve['margin']:.0%} of the whole cache.")
    else:
        sure = "its interval agrees" if curve["shown"] else "its interval is wider than that"
        console.print(
            f"Within {curve['margin']:.0%} of the whole cache: {best['saved']:.1%} saved with {best['full_groups']} "
            f"groups whole ({sure})."
        )


def _show_benchmark(run: Run) -> None:
    summary = run.summary()
    for task, metrics in summary["tasks"].items():
        for metric, found in metrics.items():
            better = "higher" if found["higher_is_better"] else "lower"
            table = Table("", metric, "minus baseline")
            for name, score in found["scores"].items():
                difference = found["differences"].get(name)
                table.add_row(escape(name), f"{score:.3g}", _estimate(difference) if difference else "")
            console.print(f"\n[bold]{escape(task)}[/] ({better} is better, n = {found['n']})")
            console.print(table)
    for name, text in summary["interventions"].items():
        console.print(f"{escape(name)}: {escape(_shortened(text))}")


def _show_patch(run: Run) -> None:
    summary = run.summary()
    console.print(
        f"Logit of {escape(repr(summary['answer']))} minus that of {escape(repr(summary['wrong']))}: "
        f"{summary['clean']:.2f} in the clean prompt, {summary['corrupt']:.2f} in the corrupt one "
        f"({summary['tokens']} tokens; patched at {'every position' if summary['where'] == 'all' else 'the last'})."
    )
    table = Table("head", "share restored", "writes itself (logits)")
    for row in summary["top"]:
        table.add_row(row["head"], f"{row['patching']:.3f}", f"{row['attribution']:.3f}")
    console.print(table)
    frame = run.heads()
    effects = frame[frame["metric"] == "patching"].pivot(index="layer", columns="head", values="value")
    largest = effects.abs().to_numpy().max()
    console.print(
        f"Layers down, heads across; a full block is {largest:.3f}, lower ones show the square root; "
        f"[{RAISES}]this colour[/] is towards the clean prompt, [{LOWERS}]this one[/] away from it."
    )
    width = 2 if MARGIN + 2 * effects.shape[1] <= console.width else 1
    across = "".join(str(head % 10).ljust(width) for head in effects.columns)
    console.print(f"{'':{MARGIN}}{across}", highlight=False, no_wrap=True, overflow="crop")
    for layer, row in effects.iterrows():
        label = Text(f"L{layer}".ljust(MARGIN))
        console.print(label.append_text(heat_row(row, largest, width)), no_wrap=True, overflow="crop")


def heat_row(values: Iterable[float], largest: float, width: int) -> Text:
    """A block for each value, its height in eighths the square root of its share of the largest, coloured by sign."""
    row = Text()
    for value in values:
        height = round(8 * math.sqrt(abs(value) / largest)) if largest else 0
        row.append(width * BLOCKS[height], style=RAISES if value > 0 else LOWERS)
    return row


def _shortened(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _estimate(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3g}"
    return f"{estimate['value']:.3g} \\[{estimate['low']:.3g}, {estimate['high']:.3g}]"


def _show_circuits(run: Run) -> None:
    summary = run.summary()
    for token, source in enumerate(summary["tokens"]):
        table = Table("head", "copying", f"writes where it looks at {source!r}", f"looks for from {source!r}")
        for row in summary["heads"]:
            writes, seeks = (", ".join(map(repr, row[name][token][:5])) for name in ("writes", "seeks"))
            table.add_row(row["head"], f"{row['copying']:.2f}", escape(writes), escape(seeks))
        console.print(table)
    console.print("copying: from 1, every token raises its own logit, to -1, every token lowers it.")
    table = Table("composition", "the strongest pairs, writer to reader")
    for kind, pairs in summary["composition"].items():
        strongest = ", ".join(f"{pair['writer']} to {pair['reader']} {pair['score']:.2f}" for pair in pairs[:5])
        table.add_row(kind, strongest)
    console.print(table)
    console.print(f"Scores above chance, which is {summary['chance']:.3f}.")


_SHOWN = {
    "retrieval": _show_retrieval,
    "ablation": _show_ablation,
    "intervene": _show_points,
    "sweep": _show_points,
    "stream": _show_stream,
    "benchmark": _show_benchmark,
    "patch": _show_patch,
    "circuits": _show_circuits,
    "sinks": sink_tables.show,
    "evict": _show_points,
    "heads": role_tables.show,
    "pairs": pair_tables.show,
    "vision": vision_tables.show,
    "hallucinate": hallucinate_tables.show,
    "rhythm": rhythm_tables.show,
    "map": map_tables.show,
}
_COUNTED = {
    "benchmark": "tasks, 95 % intervals over examples",
    "patch": "layers, one pair of prompts: no intervals",
    "circuits": "heads, read off their weights: no intervals",
    "sinks": "prompts, 95 % intervals over prompts",
    "heads": "prompts, 95 % intervals over prompts",
    "pairs": "models, 95 % intervals over windows of text",
    "vision": "pictures, 95 % intervals over pictures",
    "hallucinate": "pictures, 95 % intervals over pictures",
    "rhythm": "traces, 95 % intervals over traces",
    "map": "prompt: no intervals",
}
