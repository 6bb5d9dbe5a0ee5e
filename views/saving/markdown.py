"""Streamlit's Markdown as HTML, with nothing in it that could run, load or lead into the dashboard.

On top of the common rules Streamlit has `:gray[words]`, `:small[words]` and `:material/icon:`; the icons' font is not
in a saved page, so they are left out.
"""

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from views.saving.passed_html import INSIDE

DIRECTIVE = re.compile(r":([a-z]+(?:-[a-z]+)?)\[")
ICON = re.compile(r":material/\w+:")


def block_html(text: str) -> str:
    """Paragraphs, lists, tables."""
    return str(_READER.render(text))


def inline_html(text: str) -> str:
    """One line: a heading, a label."""
    return str(_READER.renderInline(text))


def _directive(state: StateInline, silent: bool) -> bool:
    if icon := ICON.match(state.src, state.pos):
        state.pos = icon.end()
        return True
    found = DIRECTIVE.match(state.src, state.pos)
    if not found:
        return False
    first = found.end()
    end = state.md.helpers.parseLinkLabel(state, first - 1)
    if end < 0:
        return False
    if not silent:
        after, state.pos, state.posMax = state.posMax, first, end
        state.push("span_open", "span", 1).attrSet("class", f"md-{found[1]}")
        state.md.inline.tokenize(state)
        state.push("span_close", "span", -1)
        state.posMax = after
    state.pos = end + 1
    return True


def _link(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Links out of headscope stay; those inside it have nowhere to go."""
    token = tokens[index]
    if re.match(r"https?://", str(token.attrGet("href"))):
        token.attrSet("rel", "noreferrer")
    else:
        token.attrs = {}
    return renderer.renderToken(tokens, index, options, env)


def _image(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Pictures that are inside the text stay; of others their words."""
    source, words = str(tokens[index].attrGet("src")), escape(tokens[index].content)
    return f'<img src="{escape(source)}" alt="{words}">' if INSIDE.match(source) else words


def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    reader.inline.ruler.push("directive", _directive)
    reader.add_render_rule("link_open", _link)
    reader.add_render_rule("image", _image)
    return reader


_READER = _reader()
