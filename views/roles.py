"""Roles: what every head is for, how sure that is, which roles go together, and what is left unexplained."""

from typing import Any

import streamlit as st

from analysis.runs import Run
from views import charts, reading, role_tables, tables
from views.address import chosen_run, open_head, pick
from views.change import change_several
from views.downloads import data_buttons
from views.pages import Page
from views.run_words import plain

PAGE = Page("Roles", ":material/badge:", "Analyses", 40, opens=("heads",))

EVERY = "every role"


def page() -> None:
    st.title("Roles")
    st.caption("What every head is for. Roles are chosen on one half of the prompts and confirmed on the other.")
    run = chosen_run("heads")
    summary = reading.summary(run)
    chosen = pick(
        "Role", "role", [EVERY, *summary["role_names"], role_tables.NO_ROLE],
        help="Every role: each head in the colour of the confirmed role in which it stands highest among all heads.",
    )  # fmt: skip
    only = None if chosen == EVERY else chosen
    _grid(run, summary, only)
    _heads(run, summary, only)
    _counts(summary)
    _overlap(summary)
    if summary["needle_absent"]:
        _needle_absent(summary["needle_absent"])


def _grid(run: Run, summary: dict[str, Any], only: str | None) -> None:
    frame = role_tables.grid_table(summary, charts.ROLE_LETTERS, only)
    event = st.altair_chart(
        charts.role_grid(frame, summary["role_names"]),
        key=f"role-grid-{only}",
        on_select="rerun",
        alt=f"Grid of {len(frame)} heads, layers down and heads across, coloured by "
        f"{only or 'the role in which each stands highest'}. The table below holds the same.",
    )
    for point in event.selection[charts.PICK]:
        open_head(run.id, tables.head_name(int(point["layer"]), int(point["head"])))
    counts = summary["counts"]
    source = f" · retrieval scores of run {plain(summary['retrieval_from'])}" if summary["retrieval_from"] else ""
    st.caption(
        f"{plain(reading.model_name(run))} · {counts['natural']} natural prompts, {counts['repeated']} of random "
        f"tokens said twice, {counts['needle']} with a needle ({counts['answered']} answered){source} · "
        f"hover for all roles of a head, click to open it · run {plain(run.id)}"
    )


def _heads(run: Run, summary: dict[str, Any], only: str | None) -> None:
    table = role_tables.heads_table(summary, only)
    n = summary["n_heads"]
    st.subheader(f"{len(table)} of {n} heads" if only is None else f"{len(table)} of {n} heads: {plain(only)}")
    left = summary["unexplained"]
    st.markdown(
        f"{len(left['heads'])} heads have no confirmed role, a share of {tables.interval(left)}; it would be "
        f"{left['expected']:.2f} if the same roles fell on heads by chance."
    )
    if table.empty:
        st.info(f"No head has the role {plain(str(only))} confirmed.")
        return
    key = f"heads-of-{only}"
    event = st.dataframe(
        table,
        hide_index=True,
        key=key,
        on_select="rerun",
        selection_mode="single-row",
        alt=f"Table of {len(table)} heads with their roles and the evidence for each",
        column_config={
            name: st.column_config.NumberColumn(format="%.3f")
            for name in table.columns
            if name not in ("name", "roles", "chosen only")
        },
    )
    if rows := event.selection["rows"]:
        open_head(run.id, table["name"].iloc[rows[0]])
    st.caption(
        "Evidence: means over the half of the prompts that had no say in the choice. Choose a row to open the head."
    )
    with st.container(horizontal=True):
        data_buttons(table, f"{run.id}-roles")
        if only is not None:
            change_several(run, list(table["name"]))


def _counts(summary: dict[str, Any]) -> None:
    st.subheader("The roles")
    st.dataframe(
        role_tables.counts_table(summary),
        hide_index=True,
        alt="Table of roles: threshold, heads chosen, heads confirmed, their share with its interval, the heads",
    )
    st.caption(
        f"Share confirmed: of the heads chosen, with Wilson's interval. {plain(tables.capital(summary['correction']))}."
    )


def _overlap(summary: dict[str, Any]) -> None:
    st.subheader("Which roles go together")
    st.markdown("Heads that have both roles confirmed, and in brackets how many would by chance.")
    st.dataframe(
        role_tables.overlap_table(summary["overlap"]),
        hide_index=True,
        alt="Matrix of roles: heads that carry both, and how many would by chance",
    )


def _needle_absent(found: dict[str, Any]) -> None:
    st.subheader("When the needle is not there")
    st.markdown(
        "Attention on sinks while the model answers, with the needle in its text and with the needle taken out."
    )
    st.dataframe(
        role_tables.needle_table(found),
        hide_index=True,
        alt="Attention on sinks of retrieval heads and of the others, with and without the needle, and the difference",
    )
    st.caption(f"n = {found['n']} needle prompts that had no say in choosing the heads; absent minus present, paired.")


if __name__ == "__main__":
    page()
