"""Asks the dashboard for a view without a browser.

Streamlit's AppTest puts itself in the place of a server, so this runs in a process of its own and never inside one.
"""

from dataclasses import dataclass
from pathlib import Path

from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Block

from analysis.runs import Run
from probes.errors import HeadscopeError
from views import reading
from views.pages import pages
from views.saving.view import View

APP = Path(__file__).resolve().parents[2] / "app.py"
PATIENCE = 300.0  # seconds, for a map that has to be computed


@dataclass(frozen=True)
class Answer:
    """view: with the choices that the page made where the address made none. run: the one of the sidebar, if any."""

    view: View
    main: Block
    run: Run | None


def replay(view: View) -> Answer:
    """What the dashboard shows at this address. Raises HeadscopeError where it can't."""
    app = AppTest.from_file(str(APP), default_timeout=PATIENCE)
    for name, value in _with_run(view).items():
        app.query_params[name] = value
    app.switch_page(f"views/{view.page}.py")
    try:
        app.run()
    except RuntimeError as error:  # what AppTest makes of a page that takes too long
        raise HeadscopeError(f"The page {view.page} was not ready after {PATIENCE:.0f} seconds.") from error
    if app.exception:
        raise HeadscopeError(
            f"The page {view.page} failed at this address ({app.exception[0].message}): open it in the dashboard."
        )
    if not app.title:  # every page has one; a page that can't be read at all is no exception to AppTest
        raise HeadscopeError(f"The page {view.page} showed nothing at this address: open it in the dashboard.")
    choices = {name: value if isinstance(value, str) else value[-1] for name, value in app.query_params.items()}
    run = next((run for run in reading.runs()[0] if run.id == choices.get("run")), None)
    return Answer(View(view.page, choices), app.main, run)


def _with_run(view: View) -> dict[str, str]:
    """The choices, and without a run among them the newest that the page is about."""
    choices = dict(view.choices)
    if choices.get("run", "last") == "last":
        opens = pages()[view.page].opens
        choices.pop("run", None)
        choices |= next(({"run": run.id} for run in reading.runs()[0] if reading.command(run) in opens), {})
    return choices
