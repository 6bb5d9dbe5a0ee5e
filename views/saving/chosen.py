"""What a reader had chosen: a widget as its label and its value."""

from html import escape
from typing import Any

from views.saving.markdown import inline_html

CHOOSING = frozenset({
    "button_group", "checkbox", "color_picker", "date_input", "date_time_input", "feedback", "multiselect",
    "number_input", "pagination", "radio", "select_slider", "selectbox", "slider", "text_area", "text_input",
    "time_input", "toggle",
})  # fmt: skip


def chosen_html(widget: Any) -> str:
    """Empty where nothing was chosen."""
    words = _words(widget)
    if not words:
        return ""
    # Streamlit takes the options of buttons for Markdown and those of lists for plain text.
    said = inline_html(words) if widget.type in ("button_group", "radio") else escape(words)
    label = inline_html(getattr(widget, "label", ""))
    return f'<p class="chosen"><span class="label">{label}</span> {said}</p>\n'


def _words(widget: Any) -> str:
    """An option as the list says it, and not as the page calls it."""
    value = widget.value
    try:
        if widget.type in ("selectbox", "radio"):
            return "" if widget.index is None else str(widget.options[widget.index])
        if widget.type == "multiselect":
            return ", ".join(widget.values)
        if widget.type == "button_group":
            return ", ".join(widget.formatted_values)
    except ValueError:  # a value that is no longer among the options
        pass
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " to ".join(map(str, value))
    return "" if value is None else str(value)
