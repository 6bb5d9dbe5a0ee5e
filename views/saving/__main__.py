"""What `headscope save` starts: python -m views.saving --to FILE ADDRESS..."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from analysis.cli import main

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def save(addresses: Annotated[list[str], typer.Argument()], to: Annotated[Path, typer.Option()]) -> None:
    logging.disable()  # importing Streamlit where there is no server warns of just that, on every page
    from views.saving import package
    from views.saving.view import parse_view

    package.save([parse_view(address) for address in addresses], to)


if __name__ == "__main__":
    main(verbs=app)
