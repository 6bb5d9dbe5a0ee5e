"""The verbs for vision-language models: where they look, and what changes what they invent."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.options import Device, DryRun, Dtype, Json, Out, Resume, Seed, Workers

app = typer.Typer()

# What these options are without being named; analysis.vision is not imported for a --help.
SETS, QUESTION = "themed-hard,counter-hard", "Describe the image in detail."
FEW = "none; vhr; var; pai; sink_to_image(0.15); vcd; dola"

Model = Annotated[str, typer.Option(help="emoji-llava, the folder of a vision-language model, or a hub id.")]
Pictures = Annotated[
    str,
    typer.Option(help="Sets of emoji-scenes: themed-clear, themed-hard, counter-clear, counter-hard, unseen-clear."),
]
Part = Annotated[str, typer.Option(help="judge, or dev: scenes to choose heads and strengths on.")]
Images = Annotated[Path | None, typer.Option(help="Your own folder of images instead; with --annotations.")]
Annotations = Annotated[Path | None, typer.Option(help="What is in them: JSON in the form of COCO's instances.")]
Count = Annotated[
    int | None, typer.Option(min=2, help="Pictures of each set: 40, or 16 to hallucinate; of a folder, all.")
]
Question = Annotated[str, typer.Option(help="What the model is asked for a caption.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Longest caption, in tokens.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Pictures that are answered side by side.")]


@app.command()
def vision(
    model: Model = "emoji-llava",
    pictures: Pictures = SETS,
    part: Part = "judge",
    images: Images = None,
    annotations: Annotations = None,
    count: Count = None,
    question: Question = QUESTION,
    new_tokens: NewTokens = 100,
    batch: BatchSize = 8,
    shown: Annotated[int, typer.Option(min=0, help="Pictures of each set whose maps the dashboard shows.")] = 8,
    explained: Annotated[
        int, typer.Option(min=0, help="Pictures of each set that attention rollout and gradient relevancy explain.")
    ] = 8,
    beside: Annotated[
        str | None, typer.Option("--with", help="An earlier vision run, to compare the ranking of heads with.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Which heads look at the picture, and does it show when an object is invented?

    Examples:

    - `headscope vision`
    - `headscope vision --model emoji-llava-1 --with last`
    - `headscope vision --images val2014 --annotations instances.json --count 50 --model llava-hf/llava-1.5-7b-hf`
    """
    from analysis.display import Handling
    from analysis.vision import vision_run

    vision_run.vision(
        vision_run.Asked(
            model, pictures, part, images, annotations, count, question, new_tokens, batch, shown, explained, beside,
            device, dtype, seed,
        ),
        Handling(out, resume, workers, as_json, dry_run),
    )  # fmt: skip


@app.command()
def hallucinate(
    model: Model = "emoji-llava",
    mitigations: Annotated[
        str, typer.Option("--mitigations", "--sweep", help='What to try, separated by ";", arguments in brackets.')
    ] = FEW,
    heads_from: Annotated[
        str | None, typer.Option(help="A vision run that ranks the heads, for boost(1.5, top=27).")
    ] = None,
    controls: Annotated[int, typer.Option(min=0, help="Sets of random heads beside each that chooses heads.")] = 1,
    tasks: Annotated[str, typer.Option(help="captions, pope, or both.")] = "captions,pope",
    pictures: Pictures = SETS,
    part: Part = "judge",
    images: Images = None,
    annotations: Annotations = None,
    count: Count = None,
    question: Question = QUESTION,
    new_tokens: NewTokens = 100,
    batch: BatchSize = 8,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Does a mitigation make the model invent less, or just say less?

    Examples:

    - `headscope hallucinate`
    - `headscope hallucinate --mitigations "vhr; weight(image, 1.2) @ all" --tasks captions --controls 3`
    - `headscope hallucinate --sweep "vhr(alpha=1.1); vhr(alpha=1.2)" --part dev`
    """
    from analysis.display import Handling
    from analysis.vision import hallucinate as judging

    judging.hallucinate(
        judging.Asked(
            model, mitigations, controls, tasks, pictures, part, images, annotations, count, question, new_tokens,
            batch, device, dtype, seed, heads_from,
        ),
        Handling(out, resume, workers, as_json, dry_run),
    )  # fmt: skip
