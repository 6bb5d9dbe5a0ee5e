"""Small runs of headscope map with a picture: its own code on tiny random models, with names hostile to a page.

python tests/views/example_image.py <folder>
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw

from analysis.maps.map_run import MapCase, examine
from analysis.maps.map_summary import head_frame, summarise
from analysis.runs import OpenRun, Run
from analysis.vision.pictures import Picture, Seen
from probes.image_prompt import image_prompt
from probes.subject import load
from tests.probes.families import folder_of

QUESTION = "What <b>is</b> `it`?"
NAME = "<img src=x onerror=alert(1)>.png"


def picture() -> Image.Image:
    image = Image.new("RGB", (160, 120), (120, 160, 200))
    ImageDraw.Draw(image).rectangle((20, 20, 70, 90), fill=(220, 140, 40))
    return image


def write_image_map(folder: Path, *, family: str = "llava") -> Run:
    """A finished run. Of smolvlm, whose pictures are cut into tiles, no object is known."""
    seen = (
        () if family == "smolvlm" else (Seen("cat", (0.125, 0.16, 0.44, 0.75)), Seen("<b>kite</b>", (0.7, 0, 1, 0.3)))
    )
    shown = Picture(NAME, seen, None, (), picture)
    with TemporaryDirectory() as model:
        subject = load(str(folder_of(family, Path(model))), device="cpu")
    case = MapCase(image_prompt(subject, picture(), QUESTION), shown, new_tokens=6)
    with OpenRun.start(folder, "map", {"made": "for a page", "family": family}) as run:
        run.note(model={"name": f"tiny <i>{family}</i>", "layers": 2, "heads": 4}, total_cases=1)
        record = examine(subject, case, layers=range(2), run=run.run)
        record["picture"]["sinks"] = [5]  # none of a random model's
        run.add_case(record)
        run.finish(heads=head_frame(record), summary=summarise(record))
    return run.run


if __name__ == "__main__":
    for each in ("llava", "smolvlm"):
        write_image_map(Path(sys.argv[1]), family=each)
