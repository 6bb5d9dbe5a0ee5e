"""The tokens of one trace as rows, and what is said of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.rhythm.head_sets import HeadSets
from analysis.rhythm.showing import ShownTrace
from probes.errors import HeadscopeError
from probes.heads import Head
from views import tables
from views.run_words import quoted
from views.trace import Piece

SERIES = {"waad": "WAAD", "fai": "FAI", "entropy": "entropy"}
FIRST_WORDS = 60  # characters of a question
LISTED = 12  # heads of a set by name


def token_table(case: Mapping[str, Any], shown: ShownTrace) -> pd.DataFrame:
    """A row per token: position, token, its numbers, whether it is a peak, the numbers of its pairs.

    Raises HeadscopeError where tokens and curves are of different traces.
    """
    tokens = case["tokens"]
    if len(tokens) != len(shown.waad):
        raise HeadscopeError(
            f"The trace {case['case']} has {len(tokens)} tokens and its arrays {len(shown.waad)}: delete the run's "
            "folder and run again."
        )
    pairs: list[list[str]] = [[] for _ in tokens]
    for number, pair in enumerate(shown.marks.pairs, start=1):
        for at in dict.fromkeys(pair):
            pairs[at].append(str(number))
    return pd.DataFrame(
        {
            "position": range(case["prompt_tokens"], case["prompt_tokens"] + len(tokens)),
            "token": tokens,
            "waad": shown.waad,
            "fai": shown.fai,
            **{name: np.array(case[name], float) for name in ("entropy", "next_entropy", "log_probability")},
            "waad peak": np.isin(range(len(tokens)), shown.marks.preplan),
            "fai peak": np.isin(range(len(tokens)), shown.marks.anchors),
            "pairs": [",".join(each) for each in pairs],
        }
    )


def pieces(frame: pd.DataFrame, by: str) -> list[Piece]:
    """The tokens as the page draws them."""
    return [
        Piece(
            row["token"],
            float(row[by]),
            _title(row),
            preplan=bool(row["waad peak"]),
            anchor=bool(row["fai peak"]),
            pairs=row["pairs"],
        )
        for row in frame.to_dict("records")
    ]


def span_of(frame: pd.DataFrame, by: str) -> tuple[float, float]:
    """The least and the greatest value; both 0 where there is none."""
    known = frame[by].dropna()
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def clearest(frame: pd.DataFrame) -> int:
    """The position of the preplan token of greatest WAAD, one that has an anchor if there is any.

    Not the anchor of greatest FAI: at the end of a trace few queries are left, and their means are large by chance.
    """
    peaks = frame[frame["waad peak"]]
    paired = peaks[peaks["pairs"] != ""]
    among = next((each for each in (paired, peaks) if len(each)), frame)
    return int(among.sort_values("waad", ascending=False, kind="stable")["position"].iloc[0])


def option_words(frame: pd.DataFrame) -> list[str]:
    """`57: ' cat' · anchor`"""
    return [
        f"{row['position']}: {row['token']!r}{''.join(f' · {each}' for each in _roles(row))}"
        for row in frame.to_dict("records")
    ]


def trace_words(case: Mapping[str, Any]) -> str:
    """`sum-3 · Anna has three apples … · right`"""
    question = " ".join(case["question"].split())
    question = question if len(question) <= FIRST_WORDS else question[:FIRST_WORDS].rstrip() + " …"
    verdict = {True: "right", False: "wrong", None: ""}[case.get("correct")]
    return " · ".join(filter(None, (case["case"], question, verdict)))


def horizon_words(name: str, horizon: list[int | None]) -> str:
    """`v1, 10 to 50 tokens ahead`"""
    return f"{name}, {reach_words(horizon)}"


def reach_words(horizon: list[int | None]) -> str:
    nearest, farthest = horizon
    if farthest is not None:
        return f"{nearest} to {farthest} tokens ahead"
    return "itself to the end" if nearest == 0 else f"{nearest} tokens ahead to the end"


def curve_words(summary: Mapping[str, Any], horizon: str) -> str:
    settings = summary["settings"]
    return (
        f"WAAD: how far back the local heads look, in tokens, none counted beyond {settings['window']}; its peaks are "
        "preplan tokens. FAI: mean attention that a token receives from later ones, here from "
        f"{reach_words(summary['horizons'][horizon])}, by the global heads; its peaks are anchors; at the end few "
        f"later tokens are left to average over. A peak: {settings['peaks'].replace(',', ', ')}. A click on either "
        "chart chooses a token."
    )


def set_words(sets: HeadSets) -> str:
    return "  \n".join(
        f"**{words}**: {len(heads)} heads, {_listed(heads)}"
        for words, heads in (("Local", sets.local), ("Global", sets.global_))
    )


def token_words(frame: pd.DataFrame, position: int) -> str:
    """The numbers of one token as a sentence in Markdown."""
    row = frame.iloc[position - int(frame["position"].iloc[0])].to_dict()
    roles = " and ".join(_roles(row)) or "no peak"
    pairs = f", pair {row['pairs'].replace(',', ', ')}" if row["pairs"] else ""
    chance = np.exp(row["log_probability"])
    return (
        f"{quoted(row['token'])} (position {position}) · {roles}{pairs} · WAAD **{_number(row['waad'])}** · FAI "
        f"**{_number(row['fai'])}** · entropy **{_number(row['entropy'])}** nats, of what follows "
        f"{_number(row['next_entropy'])} · probability {_number(chance)}"
    )


def _title(row: Mapping[Any, Any]) -> str:
    numbers = ", ".join(f"{words} {_number(row[name])}" for name, words in SERIES.items())
    roles = "".join(f", {each}" for each in _roles(row))
    return f"position {row['position']}: {row['token']!r}{roles}; {numbers} nats"


def _roles(row: Mapping[Any, Any]) -> list[str]:
    return [words for name, words in (("waad peak", "preplan"), ("fai peak", "anchor")) if row[name]]


def _listed(heads: tuple[Head, ...]) -> str:
    return ", ".join(str(head) for head in heads[:LISTED]) + (", …" if len(heads) > LISTED else "")


def _number(value: float) -> str:
    return "not defined" if np.isnan(value) else tables.number(value)
