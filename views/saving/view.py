"""The address of a view: a page of the dashboard and the choices made on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from probes.errors import HeadscopeError
from views.pages import pages

FIRST = "home"  # the page of the bare address, which answers to `start` too


@dataclass(frozen=True)
class View:
    page: str
    choices: Mapping[str, str]

    @property
    def address(self) -> str:
        """What comes after the dashboard's own address: `map?run=...&head=L17H4`."""
        return f"{self.page}?{urlencode(self.choices)}" if self.choices else self.page


def parse_view(address: str) -> View:
    """A view from its address, alone or as a browser shows it. Raises HeadscopeError where no page has it."""
    try:
        parts = urlsplit(address.strip())
    except ValueError:
        raise HeadscopeError(f"{address!r} is no address of a view: copy it from the browser's address bar.") from None
    page = parts.path.rstrip("/").rpartition("/")[2]
    page = FIRST if page in ("", "start") else page
    if page not in pages():
        raise HeadscopeError(f"There is no page {page!r}: choose {', '.join(pages())}.")
    return View(page, dict(parse_qsl(parts.query, keep_blank_values=True)))
