"""The trained pairs side by side, on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from analysis.runs import Run

TITLES = {
    "loss": "loss",
    "int8_rise": "8-bit rise",
    "first_share": "first token",
    "sink_rate": "sink rate",
    "largest_activation": "largest |x|",
    "kurtosis": "kurtosis",
    "unspent": "unspent",
}
console = Console()


def show(run: Run) -> None:
    """The models in rows."""
    summary = run.summary()
    table = Table("model", *TITLES.values())
    for row in summary["models"]:
        estimates = (row[name] for name in TITLES)
        cells = (f"{each['value']:.2g}\n{each['low']:.2g} to {each['high']:.2g}" for each in estimates)
        table.add_row(Path(row["model"]).name, *cells)
    console.print(table)
    console.print(
        f"{summary['windows']} windows of {summary['tokens']} tokens of held-out text. loss: nats per token, and what "
        "8-bit weights and activations add; first token: share of all attention; largest |x|: of the residual stream, "
        "mean over layers; kurtosis: mean over activations and layers; unspent: attention that goes nowhere."
    )
