"""Every page with a run that it shows, and when it stands: for what looks at all of them from outside."""

from pathlib import Path
from typing import Any

from analysis.maps.kept_layers import record_of
from analysis.maps.kept_picture import has_picture
from analysis.runs import list_runs
from views.pages import pages

PATIENCE = 60_000  # milliseconds, on a busy machine


def addresses(folder: Path) -> dict[str, str]:
    """Page to path and query, with the newest finished run that it opens; a page that none fits is left out."""
    finished = [run for run in list_runs(folder)[0] if run.finished]
    newest = {run.manifest["command"]: run.id for run in reversed(finished)}
    shown = {name: page.opens[0] if page.opens else "retrieval" for name, page in pages().items()}
    found = {name: newest[command] for name, command in shown.items() if command in newest}
    maps = [run for run in finished if run.manifest["command"] == "map"]
    for name, of_picture in (("map", False), ("image", True)):
        found.pop(name, None)
        fitting = [run.id for run in maps if has_picture(record_of(run)) == of_picture]
        found |= {name: fitting[0]} if fitting else {}
    return {name: f"/{'' if name == 'home' else name}?run={run}" for name, run in found.items()}  # home has no path


def settled(tab: Any) -> None:
    """Waits until Playwright's page has a heading and nothing that stands in for what is to come."""
    tab.get_by_role("heading").first.wait_for(timeout=PATIENCE)
    tab.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')", timeout=PATIENCE)
