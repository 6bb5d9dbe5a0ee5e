"""Elements that say what they say by themselves: texts, notes, pictures."""

import json
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from views.saving.markdown import block_html, inline_html
from views.saving.passed_html import cleaned


def _markdown(node: Any) -> str:
    return block_html(node.value)


def _caption(node: Any) -> str:
    return f'<div class="caption">{block_html(node.value)}</div>\n'


def _divider(node: Any) -> str:
    return "<hr>\n"


def _said(node: Any) -> str:
    return f'<div class="said {node.type}" role="note">{block_html(node.value)}</div>\n'


def _text(node: Any) -> str:
    return f'<p class="text">{escape(node.value)}</p>\n'


def _code(node: Any) -> str:
    return f"<pre><code>{escape(str(node.value))}</code></pre>\n"


def _json(node: Any) -> str:
    return f"<pre><code>{escape(json.dumps(json.loads(node.value), indent=1, ensure_ascii=False))}</code></pre>\n"


def _own_html(node: Any) -> str:
    html = cleaned(node.value)
    return f"<div>{html}</div>\n" if html.strip() else ""


def _button(node: Any) -> str:
    """A picture that can be pressed is there to be seen too; that which is on screen can't be pressed again."""
    label = inline_html(node.label)
    return f'<span class="picture{" taken" * node.disabled}">{label}</span>\n' if "<img" in label else ""


def _metric(node: Any) -> str:
    delta = f' <span class="delta">{inline_html(node.delta)}</span>' if node.delta else ""
    return (
        f'<p class="metric"><span class="label">{inline_html(node.label)}</span> {inline_html(node.value)}{delta}</p>\n'
    )


def _progress(node: Any) -> str:
    words = inline_html(node.text)
    return f'<p><label>{words} <progress value="{node.value}" max="100">{node.value}%</progress></label></p>\n'


def _image(node: Any) -> str:
    pieces = []
    for image in node.proto.imgs:
        shown = cleaned(f'<img src="{escape(image.url)}" alt="{escape(image.caption)}">')
        if "src=" not in shown:
            return '<p class="left-out">Left out here: a picture that only the dashboard holds.</p>\n'
        pieces.append(f"<figure>{shown}<figcaption>{inline_html(image.caption)}</figcaption></figure>\n")
    return "".join(pieces)


PLAIN: Mapping[str, Callable[[Any], str]] = {
    **dict.fromkeys(("error", "warning", "info", "success"), _said),
    **dict.fromkeys(("markdown", "latex"), _markdown),
    "button": _button,
    "caption": _caption,
    "code": _code,
    "divider": _divider,
    "html": _own_html,
    "image": _image,
    "json": _json,
    "metric": _metric,
    "progress": _progress,
    "text": _text,
}
