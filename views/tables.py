"""Rows for the pages: a run's numbers, sorted and named for reading."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis import uncertainty
from analysis.runs import Run


def head_name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def head_order(frame: pd.DataFrame) -> list[str]:
    """Every head of the run, by layer and head."""
    pairs = frame[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"])
    return [head_name(layer, head) for layer, head in pairs.itertuples(index=False)]


def runs_table(runs: Iterable[Run]) -> pd.DataFrame:
    rows = []
    for run in runs:
        manifest = run.manifest
        done = run.case_count()
        total = manifest.get("total_cases")
        rows.append(
            {
                "id": run.id,
                "command": manifest.get("command"),
                "model": manifest.get("model", {}).get("name"),
                "state": manifest.get("state"),
                "cases": str(done) if total in (None, done) else f"{done} of {total}",
                "created": manifest.get("created"),
                "seconds": manifest.get("seconds"),
            }
        )
    return pd.DataFrame(rows)


def heads_table(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric of every head, largest first."""
    chosen = frame[frame["metric"] == metric].copy()
    chosen["name"] = [head_name(layer, head) for layer, head in zip(chosen["layer"], chosen["head"], strict=True)]
    columns = ["name", "layer", "head", "value", "low", "high", "n"]
    return chosen.sort_values(["value", "layer", "head"], ascending=[False, True, True])[columns].reset_index(drop=True)


def scores_of_head(frame: pd.DataFrame, layer: int, head: int) -> pd.DataFrame:
    chosen = frame[(frame["layer"] == layer) & (frame["head"] == head)]
    return chosen[["metric", "value", "low", "high", "n"]].reset_index(drop=True)


def cases_of_head(cases: Iterable[Mapping[str, Any]], layer: int, head: int) -> pd.DataFrame:
    """One head on every case, highest score first."""
    key = f"{layer}-{head}"
    rows = [
        {
            "case": case["case"],
            "length": case["length"],
            "depth": case["depth"],
            "retrieval score": case["scores"].get(key, 0.0),
            "tokens copied": len(case["copies"].get(key, [])),
            "LOCOS": case["locos"][layer][head] if case.get("locos") else None,
            "attention on the needle": case["needle_mass"][layer][head] if case.get("needle_mass") else None,
            "recall": case["recall"],
            "passed": case["passed"],
        }
        for case in cases
    ]
    return pd.DataFrame(rows).sort_values("retrieval score", ascending=False, kind="stable").reset_index(drop=True)


def conditions(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """baseline first, then every condition in the order in which the cases name them."""
    names = {name: None for case in cases for name in case.get("conditions", {})}
    return ["baseline", *names]


def condition_words(condition: str) -> str:
    """`query_zero/decode/random/5/0` as a reader says it."""
    if condition == "baseline":
        return "baseline: nothing ablated"
    meaning, phase, which, k, *seed = condition.split("/")
    heads = f"top {k} heads" if which == "top" else f"{k} random heads (seed {', '.join(seed)})"
    return f"{meaning}, {phase}: {heads}"


def answers(cases: Iterable[Mapping[str, Any]], condition: str) -> list[dict[str, Any]]:
    """Per case: the question, the answer, and what the model said under `condition`."""
    rows = []
    for case in cases:
        if "baseline" in case:
            said = case["baseline"] if condition == "baseline" else case["conditions"].get(condition)
            if said is None:
                continue
            response, recall, correct = said["response"], said["recall"], said["correct"]
        else:
            response, recall, correct = case["response"], case["recall"], case["passed"]
        rows.append(
            {
                **{name: case[name] for name in ("case", "length", "depth", "tokens", "question", "answer")},
                "response": response,
                "recall": recall,
                "correct": bool(correct),
                "cell": cell_name(case["length"], case["depth"]),
            }
        )
    return rows


def cell_name(length: int, depth: float) -> str:
    return f"{length}-{depth:g}"


def cell_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Accuracy per length and depth, with Wilson's interval over the cell's cases."""
    table = []
    for cell, group in pd.DataFrame(list(rows)).groupby("cell", sort=False):
        right, n = int(group["correct"].sum()), len(group)
        low, high = uncertainty.wilson(right / n, n)
        table.append(
            {
                "cell": cell,
                "length": group["length"].iloc[0],
                "depth": group["depth"].iloc[0],
                "accuracy": right / n,
                "low": low,
                "high": high,
                "right": right,
                "n": n,
                "label": f"{right}/{n}",
            }
        )
    return pd.DataFrame(table).sort_values(["length", "depth"]).reset_index(drop=True)


def curve_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row per meaning, phase and K."""
    rows = []
    for point in summary["curve"]:
        row = {name: point[name] for name in ("meaning", "phase", "k")}
        for part in ("ablated", "control", "difference"):
            row |= {part: point[part]["value"], f"{part} low": point[part]["low"], f"{part} high": point[part]["high"]}
        rows.append(row | {"n": point["ablated"]["n"], "seeds": _count(point["control"].get("seeds"))})
    return pd.DataFrame(rows)


def curve_words(frame: pd.DataFrame) -> pd.DataFrame:
    """The curve's rows for reading: each number with its interval."""
    return pd.DataFrame(
        {"K": frame["k"]}
        | {
            f"{side} [95%]": [
                interval({"value": value, "low": low, "high": high})
                for value, low, high in zip(frame[side], frame[f"{side} low"], frame[f"{side} high"], strict=True)
            ]
            for side in ("ablated", "control", "difference")
        }
        | {"n": frame["n"], "seeds": frame["seeds"]}
    )


def _count(seeds: Any) -> Any:
    return len(seeds) if isinstance(seeds, list) else seeds


def verdicts(cases: Iterable[Mapping[str, Any]], meaning: str, phase: str, k: int) -> pd.DataFrame:
    """Per case: right or wrong without ablation, with the selected heads off, and with random heads off."""
    rows = []
    for case in cases:
        top, control = said_under(case, meaning, phase, k)
        if top is None:
            continue
        rows.append(
            {
                "case": case["case"],
                "length": case["length"],
                "depth": case["depth"],
                "baseline": case["baseline"]["correct"],
                "ablated": top["correct"],
                "control": f"{sum(bool(said['correct']) for said in control.values())} of {len(control)}",
            }
        )
    return pd.DataFrame(rows)


def said_under(
    case: Mapping[str, Any], meaning: str, phase: str, k: int
) -> tuple[Mapping[str, Any] | None, dict[str, Mapping[str, Any]]]:
    """What the model said with the top K heads off, and per seed with K random heads off."""
    found = case["conditions"]
    start = f"{meaning}/{phase}/random/{k}/"
    control = {name.removeprefix(start): said for name, said in found.items() if name.startswith(start)}
    return found.get(f"{meaning}/{phase}/top/{k}"), control


def interval(entry: Mapping[str, Any]) -> str:
    """`0.83 [0.71, 0.91], n = 60`"""
    return uncertainty.interval(entry) + (f", n = {entry['n']}" if "n" in entry else "")


def estimate(entry: Mapping[str, Any]) -> str:
    """A quantity of any size: `0.0102 [0.0094, 0.0111]`, `1,845 [1,620, 2,010]`; alone where its spread is unknown."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    return number(value) if low is None or high is None else f"{number(value)} [{number(low)}, {number(high)}]"


def capital(words: str) -> str:
    """With a capital letter first, the others as they are."""
    return words[:1].upper() + words[1:]


def number(value: float) -> str:
    """Three digits, or all before the point: `0.0102`, `1,845`. What rounds to nothing beside 1 is 0."""
    if abs(value) < 5e-7:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def long_table(rows: Iterable[Mapping[str, Any]], measures: Mapping[str, str]) -> pd.DataFrame:
    """A row for each estimate in `rows`: what the row says beside its estimates, then measure, value, low, high, n.

    measures: name in the rows to words; a row may lack some. low and high are missing where the spread is unknown.
    """
    return pd.DataFrame(
        [
            {name: value for name, value in row.items() if not isinstance(value, Mapping)}
            | {"measure": words}
            | {name: row[measure].get(name) for name in ("value", "low", "high", "n")}
            for row in rows
            for measure, words in measures.items()
            if measure in row
        ]
    )


def wide_table(rows: Iterable[Mapping[str, Any]], measures: Mapping[str, str]) -> pd.DataFrame:
    """The same numbers for reading: a row for each of `rows`, a column of intervals for each measure that any has."""
    rows = list(rows)
    present = {name: words for name, words in measures.items() if any(name in row for row in rows)}
    return pd.DataFrame(
        [
            {name: value for name, value in row.items() if not isinstance(value, Mapping)}
            | {words: estimate(row[name]) if name in row else "" for name, words in present.items()}
            for row in rows
        ]
    )
