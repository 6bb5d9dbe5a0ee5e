"""The trained pairs side by side, on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from analysis.runs import Run

TITLES = {
    "loss": "loss",
    "int8_loss": "8-bit loss",
    "int8_rise": "8-bit minus float",
    "first_share": "on the first token",
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
        cells = (f"{each['value']:.3g} \\[{each['low']:.3g}, {each['high']:.3g}]" for each in estimates)
        table.add_row(Path(row["model"]).name, *cells)
    console.print(table)
    console.print(
        f"{summary['windows']} windows of {summary['tokens']} tokens of held-out text; losses in nats per token; largest "
        "|x|: of the residual stream, mean over layers; kurtosis: mean over activations and layers."
    )
