"""The top of the page Head: in a sentence what a head is, then its place among all heads in every metric."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from analysis.head_story import standing_out, standings
from analysis.runs import Run
from probes.heads import Head
from views import metrics, reading, tables
from views.run_words import plain

MOST = 4  # metrics named in the sentence
ENDINGS = {1: "st", 2: "nd", 3: "rd"}


def section(
    model: str, runs: Mapping[str, Run], frames: Mapping[str, pd.DataFrame], head: Head, roles: Sequence[str] | None
) -> None:
    """runs: those of `frames`, by id. roles: its confirmed roles; None where no run asked."""
    table = standings(frames, head)
    st.markdown(f"**{head}** of {plain(model)} {_roles_in_words(roles)}. {_ends_in_words(runs, table)}")
    if len(table):
        _numbers(runs, _in_order(runs, table), head)


def _in_order(runs: Mapping[str, Run], table: pd.DataFrame) -> pd.DataFrame:
    """Run after run, the metrics of each as the other pages have them."""
    place = {(run, name): at for run in runs for at, name in enumerate(metrics.metric_order(runs[run]))}
    each = list(zip(table["run"], table["metric"], strict=True))
    runs_first = list(runs)
    return table.iloc[sorted(range(len(each)), key=lambda at: (runs_first.index(each[at][0]), place[each[at]]))]


def _numbers(runs: Mapping[str, Run], table: pd.DataFrame, head: Head) -> None:
    rows: list[Any] = table.to_dict("records")
    shown = pd.DataFrame(
        {
            "metric": [metrics.metric_of(runs[row["run"]], row["metric"]).words for row in rows],
            "value [95%]": [tables.number(row["value"]) if row["n"] == 1 else tables.estimate(row) for row in rows],
            "place": [_place(row["place"], row["level"], row["of"]) for row in rows],
            "exceeds": [100 * row["beyond"] for row in rows],
            "of run": [reading.command(runs[row["run"]]) for row in rows],
            "n": [row["n"] for row in rows],
        }
    )
    st.dataframe(
        shown,
        hide_index=True,
        alt=f"Every metric of {head}, with its place among the heads",
        column_config={
            "place": st.column_config.TextColumn(help="1 is the largest value"),
            "exceeds": st.column_config.ProgressColumn(
                "exceeds, % of heads", min_value=0, max_value=100, format="%.0f", help="Share of the others below it"
            ),
        },
    )
    used = "; ".join(f"{reading.command(run)} {run.id}" for run in runs.values())
    st.caption(
        f"The newest finished run of each command on these weights, the sidebar's first: {plain(used)}. Intervals: 95% "
        "over prompts, for this head alone."
    )


def _roles_in_words(roles: Sequence[str] | None) -> str:
    if roles is None:
        return "has not been asked for its roles"
    if not roles:
        return "has no confirmed role"
    return f"has the confirmed {'role' if len(roles) == 1 else 'roles'} **{plain(', '.join(roles))}**"


def _ends_in_words(runs: Mapping[str, Run], table: pd.DataFrame) -> str:
    found = standing_out(table)
    if found.empty:
        return "It stands out in no metric." if len(table) else "No run has measured it yet."
    said = []
    for row in found.head(MOST).to_dict("records"):
        words = metrics.metric_of(runs[row["run"]], row["metric"]).words
        shared = f" with {row['level'] - 1} more" if row["level"] > 1 else ""
        said.append(f"{plain(words)} ({_ordinal(row['from_end'])}{row['end']} of {row['of']}{shared})")
    more = f", and {len(found) - MOST} more" if len(found) > MOST else ""
    return f"It stands out in {', '.join(said)}{more}."


def _ordinal(number: int) -> str:
    """`2nd `; nothing before the first."""
    if number == 1:
        return ""
    ending = "th" if 10 <= number % 100 <= 20 else ENDINGS.get(number % 10, "th")
    return f"{number}{ending} "


def _place(place: int, level: int, of: int) -> str:
    return f"{place} of {of}" if level == 1 else f"{place} to {place + level - 1} of {of}"
