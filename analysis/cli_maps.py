"""The verb that keeps attention maps for zooming."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.options import Device, DryRun, Dtype, Json, Model, Out, Resume, Seed

app = typer.Typer()

PromptText = Annotated[str | None, typer.Option(help="Your text; without it and --file, a text that ships is read.")]
File = Annotated[Path | None, typer.Option(help="A UTF-8 text file.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put the text into the model's chat template.")]
Tokens = Annotated[
    int | None, typer.Option(min=2, help="Cut the prompt to so many tokens; of the text that ships, 1024 are read.")
]
Image = Annotated[
    Path | None, typer.Option(help="A PNG, JPEG or WebP file for a model that sees; the text asks of it.")
]
Scene = Annotated[str | None, typer.Option(help="An emoji-scene instead, such as themed-hard-judge-3.")]
NewTokens = Annotated[
    int | None,
    typer.Option(min=0, help="Longest answer, read as well: of a picture 60 tokens, of a text none, unless told so."),
]
Layers = Annotated[str, typer.Option(help="Whose maps are kept: all, or numbers such as 12,15,18.")]


@app.command("map")
def keep(
    model: Model = "smollm2-135m",
    prompt: PromptText = None,
    file: File = None,
    chat: Chat = False,
    tokens: Tokens = None,
    image: Image = None,
    scene: Scene = None,
    new_tokens: NewTokens = None,
    layers: Layers = "all",
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Where does every head look in this text or picture? Keeps maps that can be zoomed without the model.

    Examples:

    - `headscope map --prompt "The cat sat on the mat, and the cat slept."`
    - `headscope map --tokens 8000 --layers 0,15,29`
    - `headscope map --file letter.txt --chat --dry-run`
    - `headscope map --model emoji-llava --image photo.jpg --prompt "What is in the picture?"`
    """
    from analysis.display import Handling
    from analysis.maps import map_run
    from analysis.maps.map_pictures import ShownPicture
    from analysis.maps.map_prompts import Text

    map_run.keep_map(
        map_run.Asked(
            model, Text(prompt, file, chat, tokens), ShownPicture(image, scene), new_tokens, layers, device, dtype,
            seed,
        ),
        Handling(out, resume, 1, as_json, dry_run),
    )  # fmt: skip
