"""A result of Bench: what moved and what held, the numbers behind it, and example by example what was said."""

from collections.abc import Callable, Mapping
from typing import Any

import altair as alt
import streamlit as st

from analysis.bench import verdicts
from analysis.bench.question import asked_by
from analysis.runs import Run
from views import bench_charts, bench_examples, bench_form, bench_heads, bench_tables, next_steps, reading
from views.address import pick, show
from views.charts import PICK
from views.downloads import data_buttons
from views.run_words import plain
from views.unseen import seen

GRID = "bench-verdicts"
ASKED = ("intervene", "sweep")  # the commands that take an intervention; others make their own


def section(run: Run, *, change: Callable[[], None]) -> None:
    """change: shows the form in place of the result."""
    summary = reading.summary(run)
    first = next(iter(summary["tasks"].values()))
    points = {row["name"]: row for row in first["points"]}
    names = list(summary["tasks"])
    _about(run, summary, points)
    verdict_place = st.container()
    left, right = st.columns(2)
    task = pick("Task", "task", names, place=left)
    point = next(iter(points))
    if len(points) > 1:
        point = pick("Point", "point", list(points), words=bench_tables.point_words, place=right)
    chosen = summary["tasks"][task]
    with verdict_place:
        _verdicts(summary, task, point)
    _numbers(run, task, chosen, point, summary)
    bench_examples.section(run, task, point, chosen)
    _again(run, points[point], change)


def _about(run: Run, summary: Mapping[str, Any], points: Mapping[str, Mapping[str, Any]]) -> None:
    asked = str(summary["template"]) if reading.command(run) in ASKED else f"{len(points)} interventions"
    st.markdown(f"**{plain(asked)}**")
    counts = {facts["n"] for facts in summary["tasks"].values()}
    n = f"n = {counts.pop()}" if len(counts) == 1 else f"n = {min(counts)} to {max(counts)}"
    st.caption(
        f"{plain(reading.model_name(run))} · {n} examples of each task · intervals: {summary['confidence']:.0%} over "
        f"examples, for each row alone · run {plain(run.id)}"
    )


def _verdicts(summary: Mapping[str, Any], task: str, point: str) -> None:
    st.subheader("What moved, and what held")
    found = verdicts.moved_and_held(summary, point)
    st.markdown("  \n".join(f"**{words.capitalize()}**: {plain(', '.join(tasks))}" for words, tasks in found.items()))
    frame = bench_tables.verdict_table(summary)
    key = f"{GRID}-{task}-{point}"
    st.altair_chart(
        bench_charts.verdict_grid(frame, (task, point)),
        key=key,
        on_select=lambda: _follow_cell(key),
        alt=f"Grid of {len(frame)} verdicts by task and point: "
        + "; ".join(f"{row.task}, {row.shown}: {row.numbers}, {row.verdict}" for row in frame.head(12).itertuples()),
    )
    st.caption(
        "Each cell: the mean of the baseline → that of the intervention. Better or worse: the 95% interval of the "
        "difference, paired by example, leaves 0 out; beyond random heads: that to as many random heads does too. No "
        "change shown is not the same as no change. Click a cell to read its examples."
    )


def _numbers(run: Run, task: str, chosen: Mapping[str, Any], point: str, summary: Mapping[str, Any]) -> None:
    st.subheader(f"The numbers: {plain(task)}")
    st.caption(f"{plain(chosen['about'])} Measured: {plain(chosen['metric'])}, {chosen['better']} is better.")
    means, gaps = bench_tables.condition_table(chosen), bench_tables.difference_table(chosen)
    left, right = st.columns(2)
    bounded = chosen["metric"] in verdicts.BOUNDED
    scale = alt.Scale(domain=[0, 1]) if bounded else alt.Scale(zero=False, padding=14)
    left.altair_chart(
        bench_charts.intervals(means, f"Mean {chosen['metric']}", scale),
        alt=f"Mean {chosen['metric']} of baseline, intervention and random heads, with 95% intervals. "
        "The table below holds the same numbers.",
    )
    right.altair_chart(
        bench_charts.intervals(gaps, f"Paired difference in {chosen['metric']}", alt.Scale(zero=True, padding=14)),
        alt="Paired differences with 95% intervals around 0. The table below holds the same numbers.",
    )
    table = bench_tables.estimate_table(chosen)
    st.dataframe(
        table, hide_index=True, alt=f"Table of {len(table)} points: means, differences, p, examples better and worse"
    )
    st.caption(
        "Differences are taken example by example. p: McNemar's exact test for right and wrong, else a permutation of "
        f"signs; corrected (Holm) for the number of points, {len(table)}. Random heads: the mean over their sets."
    )
    row = next(row for row in chosen["points"] if row["name"] == point)
    for warning in row["warnings"]:
        st.warning(plain(warning))
    data_buttons(table, run.id)
    with st.expander("Which heads were changed, and which stood in"):
        st.text(seen(row["intervention"]))
        for name, heads in summary.get("controls", {}).items():
            if name.startswith(f"{point}/random/"):
                st.text(f"{name.removeprefix(f'{point}/')}: {', '.join(heads)}")


def _again(run: Run, point: Mapping[str, Any], change: Callable[[], None]) -> None:
    st.subheader("Again, or otherwise")
    line = st.expander("The command line that repeats it", key="repeat", on_change="rerun", bind="query-params")
    if line.open:  # what Streamlit draws it with would be a fifth of all that the page loads
        line.code(seen(run.manifest.get("argv", "")), language=None, wrap_lines=True)
    request = run.manifest.get("request", {})
    ranking = [other.id for other in bench_heads.ranking_runs(run)]

    def refill() -> None:
        bench_form.fill(asked_by(request, point, ranking, next_steps.asked_model(run)))
        change()

    st.button(
        "Change it and ask again",
        icon=":material/tune:",
        on_click=refill,
        help="Fills the form with what this run asked.",
    )


def _follow_cell(key: str) -> None:
    for cell in st.session_state[key]["selection"][PICK]:
        show("task", cell["task"])
        show("point", cell["point"])
