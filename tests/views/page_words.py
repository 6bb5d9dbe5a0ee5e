"""What a page says, as one text: of all its elements that hold words, and of the HTML that it builds itself."""

from streamlit.testing.v1 import AppTest

KINDS = ("title", "caption", "markdown", "text", "info", "subheader", "warning", "error")


def said(app: AppTest, *others: str) -> str:
    """Kind by kind; `others` are kinds that most tests have no word from, such as "code"."""
    return "\n".join(str(element.value) for kind in (*KINDS, *others) for element in getattr(app, kind))


def html_of(app: AppTest) -> str:
    return "".join(str(element.proto.body) for element in app.get("html"))
