"""The verb `save`: a view of the dashboard as a file."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from analysis.options import Out

app = typer.Typer()


@app.command()
def save(
    addresses: Annotated[
        list[str], typer.Argument(help="As the browser shows it, or from the page's name on: map?head=L17H4.")
    ],
    to: Annotated[Path, typer.Option(help="page.html for the page; all.zip for its figures and tables too.")],
    out: Out = Path("runs"),
) -> None:
    """Save a view of the dashboard as a page that opens offline, with its figures and its numbers.

    Examples:

    - `headscope save "heads?metric=retrieval_score" --to heads.html`
    - `headscope save "http://localhost:8501/map?run=...&head=L17H4" --to map.zip`
    - `headscope save heads needles ablation --to everything.zip`
    """
    # The views come after the analysis, so they are started and not imported, as for `headscope ui`.
    command = [sys.executable, "-m", "views.saving", "--to", str(to), "--", *addresses]
    environment = {**os.environ, "HEADSCOPE_RUNS": str(out.resolve())}
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)
