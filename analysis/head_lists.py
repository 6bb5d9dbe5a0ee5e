"""Which heads did others find? Lists and scores of heads, in the formats that they are published in.

    table = check(read_heads(Path("full_attention_heads.tsv")), shape)
    spread_to_heads(table, shape).frame

| format | what it holds |
| --- | --- |
| JSON `{"17-4": [0.9, 0.7]}` | scores of query heads, one per case (Wu et al., 2024; HeadKV; LOCOS), or one number |
| JSON `["L17H4", "L20H1"]` | a list of query heads, or of KV groups `L17G1` |
| text | the same names, `17-4` too, between commas, spaces or lines |
| `full_attention_heads.tsv`, or its folder | alpha of every KV group, layers x groups (Xiao et al., DuoAttention) |

Alpha near 1 keeps a group's whole cache, near 0 lets it stream; `config.json` beside it holds the sizes of sink and
window. Only the order of the alphas tells: in the authors' GQA models more than nine in ten lie above 0.5. A head that
is only named has the value 1.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from probes.errors import HeadscopeError
from probes.heads import Head, parse_head

ALPHA_FILE = "full_attention_heads.tsv"
ALPHA_SETTINGS = "config.json"
OVERSHOOT = 0.02  # DuoAttention clips alpha before a step, so that what is saved lies one learning rate outside at most

_GROUP = re.compile(r"L(\d+)G(\d+)", re.IGNORECASE)

Column = Literal["head", "group"]


class Shape(NamedTuple):
    """How many layers a model has, and query heads and KV heads in each."""

    layers: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class HeadTable:
    """A value for each query head, or for each KV group: columns `layer`, `head` or `group`, `value`."""

    frame: pd.DataFrame

    @property
    def column(self) -> Column:
        return "group" if "group" in self.frame else "head"

    @property
    def kind(self) -> Literal["query heads", "KV groups"]:
        return "KV groups" if self.column == "group" else "query heads"

    def names(self) -> list[str]:
        """`L17H4` or `L17G1`, in the order of the table."""
        letter = self.column[0].upper()
        pairs = self.frame[["layer", self.column]].to_numpy()
        return [f"L{layer}{letter}{index}" for layer, index in pairs]


# Reading


def read_heads(path: Path) -> HeadTable:
    """Heads and values from a file in any of the formats above, in its order.

    Raises HeadscopeError, which names the file, where it can't be read or holds something else.
    """
    if path.is_dir():
        path = path / ALPHA_FILE
    text = _read(path)
    if path.suffix == ".tsv":
        return HeadTable(_alphas(path, text))
    if path.suffix != ".json":
        return _named(path, [name for name in re.split(r"[\s,]+", text) if name])
    data = _json(path, text)
    if isinstance(data, list):
        return _named(path, data)
    if isinstance(data, dict):
        return _scored(path, data)
    raise HeadscopeError(f'{path}: neither scores {{"17-4": [0.9]}} nor a list ["L17H4"].')


def read_streaming(folder: Path) -> tuple[int, int]:
    """Sizes of sink and window, in keys, with which a DuoAttention pattern was trained.

    Raises HeadscopeError where its `config.json` does not say.
    """
    path = folder / ALPHA_SETTINGS
    settings = _json(path, _read(path))
    try:
        sizes = int(settings["sink_size"]), int(settings["recent_size"])
    except (KeyError, TypeError, ValueError) as problem:
        raise HeadscopeError(f"{path} must give sink_size and recent_size as whole numbers.") from problem
    return sizes


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not text"
        raise HeadscopeError(f"{path} can't be read: {reason}.") from problem


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as problem:
        raise HeadscopeError(f"{path} is not JSON: {problem}.") from problem


def _alphas(path: Path, text: str) -> pd.DataFrame:
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    if not rows or len({len(row) for row in rows}) > 1:
        raise HeadscopeError(f"{path}: a table of tabs is a row for each layer, and all rows are equally long.")
    try:
        alpha = np.array(rows, dtype=float)
    except ValueError as problem:
        raise HeadscopeError(f"{path}: {problem}.") from problem
    if not ((alpha >= -OVERSHOOT) & (alpha <= 1 + OVERSHOOT)).all():
        raise HeadscopeError(f"{path}: alpha lies in [0, 1], and here it reaches {alpha.min():g} to {alpha.max():g}.")
    return _long(np.clip(alpha, 0, 1), "group")


def _long(matrix: Float[np.ndarray, "layer index"], column: Column) -> pd.DataFrame:
    layer, index = np.indices(matrix.shape)
    return pd.DataFrame({"layer": layer.ravel(), column: index.ravel(), "value": matrix.ravel()})


def _named(path: Path, names: list[Any]) -> HeadTable:
    if not names:
        raise HeadscopeError(f"{path} names no head: write L17H4 for layer 17, head 4.")
    groups = [_GROUP.fullmatch(name) for name in map(str, names)]
    if any(groups) and not all(groups):
        raise HeadscopeError(f"{path} names both query heads (L17H4) and KV groups (L17G1): keep to one.")
    places = [(int(group[1]), int(group[2])) for group in groups if group] or [_place(path, str(n)) for n in names]
    if len(set(places)) < len(places):
        twice = next(name for name, place in zip(names, places, strict=True) if places.count(place) > 1)
        raise HeadscopeError(f"{path} names {twice} twice.")
    layers, indices = zip(*places, strict=True)
    return HeadTable(pd.DataFrame({"layer": layers, "group" if any(groups) else "head": indices, "value": 1.0}))


def _scored(path: Path, scores: dict[str, Any]) -> HeadTable:
    table = _named(path, list(scores))
    return HeadTable(table.frame.assign(value=[_mean(path, name, values) for name, values in scores.items()]))


def _mean(path: Path, name: str, scores: Any) -> float:
    try:
        values = np.atleast_1d(np.asarray(scores, dtype=float))
    except (TypeError, ValueError) as problem:
        raise HeadscopeError(f"{path}: the scores of {name} are not numbers.") from problem
    if values.ndim > 1 or not values.size or not np.isfinite(values).all():
        raise HeadscopeError(f"{path}: {name} takes a number or a list of them, and at least one, all finite.")
    return float(values.mean())


def _place(path: Path, name: str) -> tuple[int, int]:
    try:
        head = parse_head(name)
    except HeadscopeError as problem:
        raise HeadscopeError(f"{path}: {problem}") from problem
    if head.stack:
        raise HeadscopeError(
            f"{path}: {head} is a head of a tower beside the decoder, and only decoder heads are read."
        )
    return head.layer, head.head


# Heads and groups of one model


def check(table: HeadTable, shape: Shape) -> HeadTable:
    """The table itself. Raises HeadscopeError where it names what a model of this shape does not have."""
    width = _width(table, shape)
    beyond = (table.frame["layer"] >= shape.layers) | (table.frame[table.column] >= width)
    if beyond.any():
        first = HeadTable(table.frame[beyond]).names()[0]
        raise HeadscopeError(
            f"{first} does not exist: this model has layers 0 to {shape.layers - 1} and {table.kind} 0 to {width - 1}."
        )
    return table


def as_matrix(table: HeadTable, shape: Shape) -> Float[np.ndarray, "layer index"]:
    """Values of every query head or KV group. Raises HeadscopeError where one is missing or does not exist."""
    matrix = np.full((shape.layers, _width(table, shape)), np.nan)
    frame = check(table, shape).frame
    matrix[frame["layer"].to_numpy(), frame[table.column].to_numpy()] = frame["value"].to_numpy()
    if missing := int(np.isnan(matrix).sum()):
        raise HeadscopeError(f"{missing} of this model's {matrix.size} {table.kind} have no value.")
    return matrix


def spread_to_heads(table: HeadTable, shape: Shape) -> HeadTable:
    """Each query head gets the value of its KV group: head i reads group i // (heads / KV heads)."""
    if check(table, shape).column == "head":
        return table
    size = shape.heads // shape.kv_heads
    frame = table.frame.loc[table.frame.index.repeat(size)].reset_index(drop=True)
    frame.insert(1, "head", frame.pop("group") * size + np.tile(np.arange(size), len(table.frame)))
    return HeadTable(frame)


def reduce_to_groups(table: HeadTable, shape: Shape) -> HeadTable:
    """Each KV group gets the largest value among its query heads: it is needed where one of them needs it."""
    if check(table, shape).column == "group":
        return table
    group = (table.frame["head"] // (shape.heads // shape.kv_heads)).rename("group")
    return HeadTable(table.frame.groupby(["layer", group], sort=False)["value"].max().reset_index())


def whole_groups(table: HeadTable, shape: Shape, sparsity: float) -> Bool[np.ndarray, "layer group"]:
    """KV groups that keep their whole cache when the share `sparsity` of all groups streams.

    DuoAttention deploys the groups at or above the `sparsity` quantile of alpha, after random noise of 1e-6 for ties;
    here ties go by layer, then group, the later one staying whole. Raises HeadscopeError outside [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise HeadscopeError(f"The share of groups that stream lies in [0, 1], and {sparsity:g} does not.")
    alpha = as_matrix(reduce_to_groups(table, shape), shape)
    if sparsity == 1:  # the quantile of all is the largest alpha, and its group would stay
        return np.zeros(alpha.shape, dtype=bool)
    rank = np.empty(alpha.size)
    rank[np.argsort(alpha, axis=None, kind="stable")] = np.arange(alpha.size)
    return (rank >= np.quantile(rank, sparsity)).reshape(alpha.shape)


def _width(table: HeadTable, shape: Shape) -> int:
    return shape.kv_heads if table.column == "group" else shape.heads


# Writing: the text of a file, for whoever owns the folder


def scores_json(table: HeadTable) -> str:
    """`{"17-4": [0.9]}`. Raises HeadscopeError for KV groups, which this format can't name."""
    if table.column == "group":
        raise HeadscopeError("Score files name query heads: spread the values of the KV groups to their heads first.")
    rows = table.frame[["layer", "head", "value"]].itertuples(index=False)
    return json.dumps({Head(int(layer), int(head)).key: [float(value)] for layer, head, value in rows}) + "\n"


def names_json(table: HeadTable) -> str:
    """`["L17H4", "L20H1"]`."""
    return json.dumps(table.names()) + "\n"


def names_text(table: HeadTable) -> str:
    """A name on each line."""
    return "\n".join(table.names()) + "\n"


def duo_files(table: HeadTable, shape: Shape, *, sink: int, window: int) -> dict[str, str]:
    """The two files of a DuoAttention pattern, by name; query heads reduced to their groups.

    Raises HeadscopeError where a group has no value or one outside [0, 1].
    """
    alpha = as_matrix(reduce_to_groups(table, shape), shape)
    if alpha.min() < 0 or alpha.max() > 1:
        raise HeadscopeError(f"alpha lies in [0, 1], and here it reaches {alpha.min():g} to {alpha.max():g}.")
    rows = ["\t".join(f"{value:.17g}" for value in row) for row in alpha]
    return {
        ALPHA_FILE: "\n".join(rows) + "\n",
        ALPHA_SETTINGS: json.dumps({"sink_size": sink, "recent_size": window}) + "\n",
    }
