"""What a page shows, element by element, as HTML that stands still: an interactive part becomes what it said."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from streamlit.testing.v1.element_tree import Block

from views.saving.chosen import CHOOSING, chosen_html
from views.saving.figures import Figure, read_figure
from views.saving.markdown import inline_html
from views.saving.plain_elements import PLAIN
from views.saving.tables import Table, read_table

# They do something in the dashboard, or are nothing to see.
SILENT = frozenset({
    "audio_input", "balloons", "camera_input", "chat_input", "download_button", "empty", "file_uploader",
    "link_button", "menu_button", "page_link", "skeleton", "snow", "space", "spinner", "toast",
})  # fmt: skip


@dataclass
class Writer:
    """Writes a page from top to bottom and keeps the figures and tables that it meets, named after their headings."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    heading: str = ""

    def html(self, node: Any) -> str:
        if isinstance(node, Block):
            return self._block(node)
        if node.type in CHOOSING:
            return chosen_html(node)
        if node.type in SILENT:
            return ""
        if keep := KEEPERS.get(node.type):
            return keep(self, node)
        if write := PLAIN.get(node.type):
            return write(node)
        kind = node.type.replace("_", " ")
        return f'<p class="left-out">Left out here, as a saved page can\'t hold it: {escape(kind)}.</p>\n'

    def _block(self, block: Block) -> str:
        inside = "".join(self.html(child) for _, child in sorted(block.children.items()))
        if not inside:
            return ""
        proto: Any = block.proto
        match block.type:
            case "tab":
                return f"<div>\n<h3>{inline_html(proto.label)}</h3>\n{inside}</div>\n"
            case "popover" if all(getattr(child, "type", "") in CHOOSING for child in block.children.values()):
                return f'<div class="row">\n{inside}</div>\n'
            case "popover":
                return _folded(proto.popover.label, inside, is_open=True)  # it may say why something isn't there
            case "expander" | "status":
                return _folded(proto.label, inside, is_open=proto.expanded)
        return f"<div{_look(block)}>\n{inside}</div>\n"

    def _heading(self, node: Any) -> str:
        self.heading = node.value
        level = "h1" if node.type == "title" else "h2"
        return f"<{level}>{inline_html(node.value)}</{level}>\n"

    def _dataframe(self, node: Any) -> str:
        proto = node.proto
        order = list(getattr(proto, "column_order", ()))
        table = read_table(
            self._name("table", len(self.tables)), node.value, getattr(proto, "alt", ""),
            getattr(proto, "columns", ""), order,
        )  # fmt: skip
        self.tables.append(table)
        return table.html()

    def _chart(self, node: Any) -> str:
        figure = read_figure(self._name("figure", len(self.figures)), node.proto)
        self.figures.append(figure)
        spec = json.dumps(figure.drawn(), allow_nan=False).replace("<", "\\u003c")
        return (
            f'<figure><div class="chart" id="{figure.name}"></div>'
            f'<script type="application/json" data-figure="{figure.name}">{spec}</script></figure>\n'
        )

    def _name(self, kind: str, before: int) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")[:50].rstrip("-")
        return f"{kind}-{before + 1:02}-{words}" if words else f"{kind}-{before + 1:02}"


def _folded(label: str, inside: str, *, is_open: bool) -> str:
    return f"<details{' open' * is_open}><summary>{inline_html(label)}</summary>\n{inside}</details>\n"


def _look(block: Block) -> str:
    """The class of a container: a column, a row, or a frame."""
    proto: Any = block.proto
    if block.type == "column":
        return f' class="column" style="flex:{100 * proto.weight:.0f} 1 {16 * proto.weight:.1f}rem"'
    if block.type == "grid_container":
        return ' class="row"'
    if block.type != "flex_container":
        return ""
    container = proto.flex_container
    row = container.direction == container.HORIZONTAL
    names = [*(["row"] if row else []), *(["card"] if container.border else [])]
    return f' class="{" ".join(names)}"' if names else ""


KEEPERS: Mapping[str, Callable[[Writer, Any], str]] = {
    **dict.fromkeys(("title", "header", "subheader"), Writer._heading),
    **dict.fromkeys(("dataframe", "table"), Writer._dataframe),
    "vega_lite_chart": Writer._chart,
}
