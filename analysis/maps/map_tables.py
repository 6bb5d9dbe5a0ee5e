"""A run of `headscope map` on the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.runs import Run

console = Console()


def show(run: Run) -> None:
    """What is kept, where attention is parked, and per layer the means over its heads."""
    summary = run.summary()
    console.print(
        f"{summary['tokens']} tokens; q, k and L of {summary['heads']} heads in {len(summary['layers'])} layers kept "
        f"as {summary['kept_as']}."
    )
    if "picture" in summary:
        console.print(f"Picture: {escape(summary['picture'])}")
    if "answer" in summary:
        console.print(f"The model's answer, read as well: {escape(summary['answer'].strip())}")
    parked = ", ".join(f"{sink['position']} {escape(repr(sink['token']))}" for sink in summary["sinks"][:10])
    console.print(f"Keys on which the kept heads park their attention: {parked or 'none'}")
    means = summary["layer_means"]
    table = Table("layer", "on the first token", "on sinks", "entropy, nats", "distance, tokens")
    for i, layer in enumerate(summary["layers"]):
        cells = (means[name][i] for name in ("first_share", "sink_share", "entropy", "distance"))
        table.add_row(str(layer), *(f"{value:.3g}" for value in cells))
    console.print(table)
    console.print("Means over the queries and over each layer's heads; heads.parquet has every head.")
