"""Rows of the roles of heads: a run of `headscope heads`, sorted and named for reading."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis import uncertainty
from probes.heads import parse_head
from views import tables

NO_ROLE = "no role"
CONFIRMED, CHOSEN, NEITHER, NOT_MEASURED = "confirmed", "chosen, not confirmed", "no", "not measured"
GROUPS = {"retrieval": "retrieval heads", "others": "other heads"}


def roles_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The roles by name, in the order in which the run names them."""
    return {name: summary["roles"][name] for name in summary["role_names"]}


def leading_roles(summary: Mapping[str, Any]) -> dict[str, str]:
    """Head to the one of its confirmed roles in whose list it stands highest."""
    places = {
        name: {head: place for place, head in enumerate(role["confirmed_heads"])}
        for name, role in roles_of(summary).items()
    }
    return {
        row["head"]: min(row["confirmed"], key=lambda name: places[name][row["head"]], default=NO_ROLE)
        for row in summary["heads"]
    }


def grid_table(summary: Mapping[str, Any], letters: Mapping[str, str], only: str | None = None) -> pd.DataFrame:
    """A row for each head: where it is, its role, that role's letter, and all its roles. `only` one role, or each's."""
    leading = leading_roles(summary)
    rows = []
    for row in summary["heads"]:
        role = leading[row["head"]] if only is None else only if carries(row, only) else ""
        layer, head, _ = parse_head(row["head"])
        roles = ", ".join(row["confirmed"]) or NO_ROLE
        name = row["head"]
        rows.append((layer, head, name, role, letters.get(role, ""), roles))
    return pd.DataFrame(rows, columns=["layer", "head", "name", "role", "letter", "roles"])


def carries(row: Mapping[str, Any], role: str) -> bool:
    """Whether a head has the role confirmed; NO_ROLE: none at all."""
    return role in (row["confirmed"] or [NO_ROLE])


def counts_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each role: how many heads were chosen, how many the other half confirmed."""
    return pd.DataFrame(
        [
            {
                "role": name,
                "threshold": threshold(role),
                "chosen": str(role["chosen"]) if role["chosen"] is not None else NOT_MEASURED,
                "confirmed": len(role["confirmed_heads"]),
                "share confirmed [95%]": uncertainty.interval(role["confirmed"]) if role["confirmed"] else "",
                "strongest first": ", ".join(role["confirmed_heads"]),
                "what counts": role["about"],
                "source": role["source"],
            }
            for name, role in roles_of(summary).items()
        ]
    )


def threshold(role: Mapping[str, Any]) -> str:
    return f"{'at least' if role['above'] else 'below'} {role['threshold']:g}"


def overlap_table(overlap: Mapping[str, Any]) -> pd.DataFrame:
    """Heads that carry both roles, beside how many would by chance."""
    columns = {
        name: [
            str(overlap["counts"][i][j]) if i == j else f"{overlap['counts'][i][j]} ({overlap['expected'][i][j]:.1f})"
            for i in range(len(overlap["roles"]))
        ]
        for j, name in enumerate(overlap["roles"])
    }
    return pd.DataFrame({"heads of both (by chance)": overlap["roles"]} | columns)


def needle_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Attention on sinks with the needle and without, for each group that has heads."""
    return pd.DataFrame(
        [
            {"heads": f"{found[name]['heads']} {words}"}
            | {
                f"{title} [95%]": uncertainty.interval(found[name][part])
                for part, title in (
                    ("present", "needle present"),
                    ("absent", "needle absent"),
                    ("difference", "difference"),
                )
            }
            for name, words in GROUPS.items()
            if found[name]
        ]
    )


def heads_table(summary: Mapping[str, Any], only: str | None = None) -> pd.DataFrame:
    """A row for each head, or for those of one role, strongest first: roles, and evidence of the judging half."""
    roles = roles_of(summary)
    rows = [row for row in summary["heads"] if only is None or carries(row, only)]
    if only in roles:
        order = roles[only]["confirmed_heads"]
        rows.sort(key=lambda row: order.index(row["head"]))
    return pd.DataFrame([_head_row(row, roles.values()) for row in rows])


def _head_row(row: Mapping[str, Any], roles: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": row["head"],
        "roles": ", ".join(row["confirmed"]),
        "chosen only": ", ".join(name for name in row["roles"] if name not in row["confirmed"]),
    } | {
        role["metric"].replace("_", " "): row["evidence"][role["metric"]]["judged"]
        for role in roles
        if role["metric"] in row["evidence"]
    }


def evidence_of_head(summary: Mapping[str, Any], name: str) -> pd.DataFrame:
    """A row for each role: what one half of the prompts said about the head, what the other, and the verdict."""
    row = next(row for row in summary["heads"] if row["head"] == name)
    table = []
    for role, facts in roles_of(summary).items():
        found = row["evidence"].get(facts["metric"])
        if found is None:
            verdict, chosen, judged = NOT_MEASURED, "", ""
        else:
            verdict = CONFIRMED if role in row["confirmed"] else CHOSEN if role in row["roles"] else NEITHER
            chosen = tables.number(found["chosen"])
            judged = tables.estimate(found | {"value": found["judged"]})
        table.append(
            {
                "role": role,
                "verdict": verdict,
                "threshold": threshold(facts),
                "half that chose": chosen,
                "half that judged [95%]": judged,
                "what counts": facts["about"],
            }
        )
    return pd.DataFrame(table)
