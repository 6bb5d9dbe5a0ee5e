"""Rows and sentences of a run of `headscope rhythm`, sorted and named for reading."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from views import tables

PAPER = "Qwen3-4B-Base, GSM8K"  # the one model of which the paper prints more than lifts
COUPLINGS = {
    "entropy": "entropy at WAAD peaks (nats)",
    "next_entropy": "entropy after WAAD peaks (nats)",
    "receiver": "peaks of receiver heads that are FAI peaks",
    "lag": "WAAD peaks with an FAI peak at or just after",
}
SHORT = {"entropy": "entropy", "next_entropy": "entropy after", "receiver": "receivers", "lag": "lag"}
NULLS = {"shuffle": "peaks shuffled", "shift": "gaps kept", "tokens": "share of tokens"}
VARIED = {
    "window": "window (tokens)",
    "horizon": "horizon",
    "share": "share of heads",
    "layers": "layers",
    "exclude_sink": "first token left out",
}
SPANS = {"distance": "distance (tokens)", "distance_without_sink": "distance without the first token (tokens)"}
MASS = {"sink_mass": "attention on the first token"}
SETS = {"local": "local", "global": "global", "receivers": "receivers"}


def coupling_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each coupling: this run's numbers beside those of the models of the paper."""
    papers = summary["published"]["couplings"]
    main, others = papers.get(PAPER, {}), [model for model in papers if model != PAPER]
    return pd.DataFrame(
        [
            {
                "coupling": words,
                "lift": percent(found["lift"]) if found else "no peak to judge",
                "paper's lift": _printed(main, name, "lift"),
                "verdict": found["verdict"] if found else "",
                "observed": tables.estimate(found["observed"]) if found else "",
                "by chance": tables.estimate(found["null"]) if found else "",
                "paper's observed": _printed(main, name, "observed"),
                "paper's by chance": _printed(main, name, "null"),
                "n": f"{found['observed']['n']} traces, {found['peaks']:,} peaks" if found else "",
                **{f"paper's lift, {model}": _printed(papers[model], name, "lift") for model in others},
            }
            for name, words in COUPLINGS.items()
            for found in [summary["couplings"].get(name)]
        ]
    )


def lift_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each coupling's lift against the paper's null, with the gaps kept, and as the paper has it."""
    rows = []
    for name in COUPLINGS:
        found = summary["couplings"].get(name)
        if found is None:
            continue
        row = {"coupling": SHORT[name]}
        rows.append(row | {"against": "here", "lift": found["lift"]})
        rows.append(row | {"against": "here, gaps kept", "lift": found["nulls"]["shift"]["lift"]})
        if theirs := summary["published"]["couplings"].get(PAPER, {}).get(name):
            rows.append(row | {"against": "paper", "lift": {"value": theirs["lift"]}})
    return rows


def null_table(couplings: Mapping[str, Any]) -> pd.DataFrame:
    """Every null of every coupling."""
    return pd.DataFrame(
        [
            {
                "coupling": words,
                "what chance keeps": NULLS.get(null, null),
                "by chance": tables.estimate(each["null"]),
                "lift": percent(each["lift"]),
                "difference": tables.estimate(each["difference"]),
                "p": f"{each['p']:.2g}" if "p" in each else "",
                "verdict": each["verdict"],
            }
            for name, words in COUPLINGS.items()
            for null, each in (couplings.get(name) or {"nulls": {}})["nulls"].items()
        ]
    )


def set_table(sets: Mapping[str, Any]) -> pd.DataFrame:
    """Local, global and receiver heads, and how far two halves of the traces agree on them."""
    halves = sets["halves"] or {}
    return pd.DataFrame(
        [
            {
                "set": words,
                "heads": len(sets[name]),
                "two halves of the traces share": f"{halves[name]['shared']} of {halves[name]['size']}"
                if name in halves
                else "not known",
                "by chance": f"{halves[name]['expected']:.1f}" if name in halves else "",
                "which": ", ".join(sets[name]) or "none: no trace has enough sentences",
            }
            for name, words in SETS.items()
        ]
    )


def sensitivity_table(rows: list[Mapping[str, Any]]) -> pd.DataFrame:
    """The lifts as each choice is varied alone."""
    lifts = [(name, "lift", f"lift, {SHORT[name]}") for name in ("entropy", "receiver", "lag")]
    lifts.append(("lag", "gaps_kept", "lift, lag, gaps kept"))
    return pd.DataFrame(
        [
            {
                "varied": VARIED.get(row["varied"], row["varied"]),
                "value": _value(row["value"]),
                "as asked": "yes" if row["chosen"] else "",
                **{words: percent(row[name][part]) if row.get(name) else "—" for name, part, words in lifts},
                "not judged because": row.get("why_not") or "",
            }
            for row in rows
        ]
    )


def percent(lift: Mapping[str, Any]) -> str:
    """`+51% [+20%, +80%]`; alone where its spread is unknown."""
    if lift.get("low") is None or lift.get("high") is None:
        return f"{lift['value']:+.0%}"
    return f"{lift['value']:+.0%} [{lift['low']:+.0%}, {lift['high']:+.0%}]"


def _printed(paper: Mapping[str, Any], name: str, part: str) -> str:
    """A number of the paper; nothing where it prints none."""
    value = paper.get(name, {}).get(part)
    if value is None:
        return ""
    return f"{value:+.0%}" if part == "lift" else tables.number(value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
