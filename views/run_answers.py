"""What a run answers, in one line."""

from collections.abc import Callable, Mapping
from typing import Any

from analysis.bench.verdicts import moved_and_held
from analysis.maps.map_summary import ranges
from analysis.runs import Run
from probes.errors import HeadscopeError
from views import reading, tables

Summary = Mapping[str, Any]


def answer(run: Run, *, at_work: bool = False) -> str:
    """The answer of a finished run; of another one how far it is and, unless a job is `at_work` on it, how to go on."""
    if not run.finished:
        total = run.manifest.get("total_cases")
        done = f"{run.case_count()} of {total} cases" if total else f"{run.case_count()} cases"
        if at_work:
            return f"A job is at work on it: {done}."
        return f"{reading.state(run).capitalize()} at {done}. Go on with --resume {run.id}."
    told = ANSWERS.get(reading.command(run))
    try:
        return told(reading.summary(run)) if told else f"Finished with {run.case_count()} cases."
    except (KeyError, IndexError, TypeError, ValueError):
        return "Finished; its summary is of another version, so open its page."
    except HeadscopeError as error:
        return str(error)


def _retrieval(found: Summary) -> str:
    first = ", ".join(row["head"] for row in found["top"][:3])
    if not first:
        return f"No case was answered (n = {found['n_cases']}), so no head has a score."
    return (
        f"{found['share_at_threshold']:.1%} of the heads fetch facts (score {found['threshold']:g} or more), first "
        f"{first}; needle accuracy {tables.interval(found['accuracy'])}."
    )


def _ablation(found: Summary) -> str:
    row = max(found["curve"], key=lambda row: row["k"])  # the first meaning at the largest K, not the best looking
    return (
        f"Accuracy {found['baseline']['value']:.2f} falls to {row['ablated']['value']:.2f} without the top {row['k']} "
        f"heads ({row['meaning']}, {row['phase']}) and to {row['control']['value']:.2f} without random ones: "
        f"difference {tables.interval(row['difference'])}."
    )


def _sinks(found: Summary) -> str:
    counts = found["counts"]
    return (
        f"{counts['sink_heads']} of {counts['heads']} heads park attention on the first token; of all attention sinks "
        f"take {tables.interval(found['overall']['sink_share'])}."
    )


def _heads(found: Summary) -> str:
    counted = {name: len(found["roles"][name]["confirmed_heads"]) for name in found["role_names"]}
    said = ", ".join(f"{name} {count}" for name, count in counted.items() if count) or "no role confirmed"
    return f"Heads by confirmed role: {said}; without any {found['unexplained']['value']:.0%}."


def _pairs(found: Summary) -> str:
    return f"{len(found['models'])} models that differ in their rule of attention, side by side on one text."


def _vision(found: Summary) -> str:
    invented = (f"{name} {tables.interval(each['chair']['chair_i'])}" for name, each in found["sets"].items())
    return f"Share of the named objects that are invented (CHAIR_i): {'; '.join(invented)}."


def _hallucinate(found: Summary) -> str:
    arms = [arm["name"] for arm in found["arms"] if not arm["control_of"] and arm["name"] != "none"]
    sets = ", ".join(found["sets"])
    return f"{len(arms)} ways to invent less against none, on {sets}: {', '.join(arms[:4])}{', …' * (len(arms) > 4)}."


def _points(found: Summary) -> str:
    name, task = next(iter(found["tasks"].items()))
    point = task["points"][0]
    asked = found.get("template", point["name"])
    said = "; ".join(f"{words} {', '.join(tasks)}" for words, tasks in moved_and_held(found, point["name"]).items())
    others = len(task["points"]) - 1
    where = f" ({point['name']}, beside {others} more)" if others else ""
    return (
        f"{asked}{where}: {said}. {tables.capital(name)}: {task['metric']} {point['baseline']['value']:.3g} becomes "
        f"{point['treated']['value']:.3g}, difference {tables.interval(point['treated_to_baseline']['difference'])}, "
        f"n = {task['n']}."
    )


def _patch(found: Summary) -> str:
    first = ", ".join(f"{row['head']} {row['patching']:.2f}" for row in found["top"][:3])
    return f"Share of {found['answer']!r} against {found['wrong']!r} that a head restores: {first}."


def _circuits(found: Summary) -> str:
    first = sorted(found["heads"], key=lambda row: row["copying"], reverse=True)[:3]
    return f"Heads that copy most by their weights: {', '.join(row['head'] for row in first)}."


def _rhythm(found: Summary) -> str:
    first = ", ".join(found["sets"]["global"][:3])
    return (
        f"{found['n_cases']} traces, accuracy {tables.interval(found['accuracy'])}; heads that look far first: {first}."
    )


def _map(found: Summary) -> str:
    stretches = [(first, stop - 1) for first, stop in ranges(found["layers"])]
    layers = ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in stretches)
    picture = f", the picture {found['picture']} among them" if "picture" in found else ""
    return f"The attention of {found['heads']} heads over {found['tokens']:,} tokens{picture}, layers {layers}."


ANSWERS: Mapping[str, Callable[[Summary], str]] = {
    "retrieval": _retrieval,
    "ablation": _ablation,
    "sinks": _sinks,
    "heads": _heads,
    "pairs": _pairs,
    "vision": _vision,
    "hallucinate": _hallucinate,
    "intervene": _points,
    "sweep": _points,
    "evict": _points,
    "patch": _patch,
    "circuits": _circuits,
    "rhythm": _rhythm,
    "map": _map,
}
