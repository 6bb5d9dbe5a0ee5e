"""The verb for reasoning traces: their rhythm, and the credit that it implies."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.options import Device, DryRun, Dtype, Json, Model, Out, Resume, Seed, Workers

app = typer.Typer()

Traces = Annotated[
    Path | None, typer.Option(help="Your own traces: JSONL with prompt or question, and response; id and answer too.")
]
Write = Annotated[bool, typer.Option("--write", help="Let the model write its own traces, as every other model does.")]
Count = Annotated[int | None, typer.Option(min=1, help="Only so many traces, the first ones.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="For traces that are written: 0.7 unless told otherwise.")
]
NewTokens = Annotated[int | None, typer.Option(min=1, help="Longest response that is written, in tokens: 256.")]
Window = Annotated[int, typer.Option(min=1, help="Tokens beyond which a distance counts no further, for WAAD.")]
HorizonName = Annotated[
    str, typer.Option("--horizon", help="For FAI: analysis, v1, v2, or how far ahead it looks, such as 10,80.")
]
Share = Annotated[float, typer.Option(help="Share of the heads that are local, and as many that are global.")]
Layers = Annotated[str, typer.Option(help="Whose heads: all, lower, middle, upper, or numbers such as 12,15,18.")]
Sink = Annotated[bool, typer.Option("--exclude-sink", help="Rank heads by distance with the first token left out.")]
Rule = Annotated[str | None, typer.Option(help="What a peak is, such as prominence=0.5,distance=2.")]
Perturb = Annotated[int, typer.Option(min=0, help="Traces on which other tokens are forced and rolled out.")]
Sensitivity = Annotated[
    bool, typer.Option("--sensitivity/--no-sensitivity", help="Vary window, horizon, share, layers and sink in turn.")
]
Export = Annotated[Path | None, typer.Option(help="Write each token's credit to this JSONL file.")]
Strategy = Annotated[str, typer.Option(help="Whose credit: local, global or coupled.")]


@app.command()
def rhythm(
    model: Model = "smollm2-135m",
    traces: Traces = None,
    write: Write = False,
    count: Count = None,
    temperature: Temperature = None,
    new_tokens: NewTokens = None,
    window: Window = 10,
    horizon: HorizonName = "analysis",
    share: Share = 0.3,
    layers: Layers = "all",
    exclude_sink: Sink = False,
    peaks: Rule = None,
    perturb: Perturb = 0,
    sensitivity: Sensitivity = True,
    export: Export = None,
    strategy: Strategy = "coupled",
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Does reasoning have a rhythm: a token that plans, then one that later reasoning leans on?

    Heads are chosen on one half of the traces and judged on the other.

    Examples:

    - `headscope rhythm --count 40`
    - `headscope rhythm --traces mine.jsonl --horizon v2 --layers middle --exclude-sink`
    - `headscope rhythm --model path/to/folder --write --count 70 --perturb 20`
    - `headscope rhythm --resume last --export credit.jsonl --strategy coupled`
    """
    from analysis.display import Handling
    from analysis.rhythm import rhythm_run

    rhythm_run.rhythm(
        rhythm_run.Asked(
            model, traces, write, count, temperature, new_tokens, window, horizon, share, layers, exclude_sink, peaks,
            perturb, sensitivity, device, dtype, seed,
        ),
        Handling(out, resume, workers, as_json, dry_run),
        export=rhythm_run.Export(export, strategy) if export else None,
    )  # fmt: skip
