"""The HTML that views write themselves, with only what a still page needs: Streamlit cleans it in the browser too."""

import re
from html import escape
from html.parser import HTMLParser

TAGS = frozenset({
    "a", "b", "br", "code", "div", "em", "figcaption", "figure", "h2", "h3", "h4", "hr", "i", "img", "li", "mark", "ol",
    "p", "pre", "s", "small", "span", "strong", "sub", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u",
    "ul", "svg", "g", "circle", "ellipse", "line", "path", "polygon", "polyline", "rect", "text", "title", "tspan",
})  # fmt: skip
VOID = frozenset({"br", "hr", "img"})
SILENT = frozenset({"script", "style", "template", "iframe", "object", "noscript"})  # their text isn't words
INSIDE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,")
REACHES_OUT = re.compile(r"url\s*\(|image-set|expression|@import|\\", re.IGNORECASE)
WORDS = frozenset({"alt", "aria-label", "title"})
LEADS = frozenset(
    {"href", "src", "srcset", "action", "formaction", "poster", "background", "id", "name", "for", "target"}
)


def cleaned(html: str) -> str:
    """Without scripts, handlers, links and anything that is loaded; pictures stay where they are inside the page."""
    cleaner = _Cleaner()
    cleaner.feed(html)
    cleaner.close()
    return "".join([*cleaner.pieces, *(f"</{tag}>" for tag in reversed(cleaner.open))])


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.open: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SILENT:
            self.silent += 1
        if tag not in TAGS or self.silent:
            return
        self.pieces.append(f"<{tag}{''.join(_attribute(tag, name, value or '') for name, value in attrs)}>")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT:
            self.silent = max(0, self.silent - 1)
        if tag not in self.open:
            return
        while self.open:  # closes what was left open inside
            last = self.open.pop()
            self.pieces.append(f"</{last}>")
            if last == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.pieces.append(escape(data))


def _attribute(tag: str, name: str, value: str) -> str:
    written = f' {name}="{escape(value)}"'
    if tag == "img" and name == "src":
        return written if INSIDE.match(value) else ""
    if name in LEADS or name.startswith("on") or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        return ""
    return "" if REACHES_OUT.search(value) and name not in WORDS else written
