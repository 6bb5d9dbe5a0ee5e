"""A small run of headscope vision and one of headscope hallucinate. Every number in them is invented.

python tests/views/example_vision.py <folder>
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from analysis.runs import OpenRun, Run
from analysis.vision import hallucination_summary
from analysis.vision.answering import TASKS, Arm
from analysis.vision.cases import PictureSet
from analysis.vision.explaining import MEASURES, METHODS
from analysis.vision.inventions import caption_counts
from analysis.vision.mitigations import mitigation
from analysis.vision.objects import Vocabulary
from analysis.vision.pictures import Picture
from analysis.vision.pope import SPLITS
from analysis.vision.vision_summary import metric_frame, summarise

LAYERS, HEADS, PATCHES = 4, 3, 10
MODEL = {"name": "invented", "dtype": "float32", "device": "cpu", "layers": LAYERS, "heads": HEADS}
TOKENS = [
    "The", " image", " shows", " a", " red", " cat", ",", " a", " dog", " and", " an", " um", "brella", " <b>", ".",
]  # fmt: skip
CAPTION = "".join(TOKENS)
OBJECTS: list[dict[str, Any]] = [
    {"name": "cat", "box": [0.1, 0.2, 0.4, 0.6]},
    {"name": "kite", "box": [0.6, 0.05, 0.9, 0.3]},
]
MENTIONS: list[dict[str, Any]] = [
    {"name": name, "start": CAPTION.index(name), "stop": CAPTION.index(name) + len(name), "step": step,
     "invented": name != "cat"}
    for name, step in (("cat", 5), ("dog", 8), ("umbrella", 11))
]  # fmt: skip


def write_arrays(folder: Path, name: str) -> None:
    """A picture of two squares. L2H1 looks at the cat, all others anywhere."""
    draw = np.random.default_rng(0)
    picture = np.full((160, 160, 3), (120, 160, 200), np.uint8)
    for each, colour in zip(OBJECTS, ((220, 140, 40), (240, 240, 240)), strict=True):
        left, top, right, bottom = (round(160 * edge) for edge in each["box"])
        picture[top:bottom, left:right] = colour
    edges = np.arange(PATCHES) / PATCHES
    top, left = (each.ravel() for each in np.meshgrid(edges, edges, indexing="ij"))
    patches = np.stack([left, top, left + 1 / PATCHES, top + 1 / PATCHES], 1).astype(np.float32)
    maps = draw.integers(0, 120, (len(TOKENS), LAYERS * HEADS, len(patches))).astype(np.uint8)
    left, top, right, bottom = OBJECTS[0]["box"]
    inside = (patches[:, 0] >= left) & (patches[:, 2] <= right) & (patches[:, 1] >= top) & (patches[:, 3] <= bottom)
    maps[:, 2 * HEADS + 1] = np.where(inside, 255, 2)
    scale = np.full(maps.shape[:2], 0.02, np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    divergence = draw.uniform(1, 9, len(TOKENS)).astype(np.float32)
    arrays: dict[str, Any] = {
        "picture": picture,
        "maps": maps,
        "scale": scale,
        "patches": patches,
        "token_divergence": divergence,
    }
    save_file(arrays, folder / f"{name}.safetensors")


def row(name: str, number: int) -> dict[str, Any]:
    """What a run keeps of a picture. L2H1 stands out in everything."""
    draw = np.random.default_rng(number)

    def heads(most: float) -> list[list[float]]:
        values = draw.uniform(0, most / 2, (LAYERS, HEADS))
        values[2, 1] = most
        return [[float(value) for value in layer] for layer in values]

    most = {
        "divergence": 6.0, "divergence_squared": 36.0, "divergence_relative": 1.0, "image_mass": 0.8,
        "system_mass": 0.1, "question_mass": 0.2, "generated_mass": 0.4, "image_centric": 0.5, "hit": 1.0,
        "inside": 0.7, "ratio": 4.0, "elsewhere_hit": 0.2, "elsewhere_inside": 0.2, "elsewhere_ratio": 1.2,
    }  # fmt: skip
    controls = {f"{name}_{what}": 0.1 for name in ("even", "centre") for what in ("hit", "inside", "ratio")}
    return {
        "picture": name, "theme": "park", "likely": ["dog"], "caption": CAPTION, "tokens": TOKENS, "objects": OBJECTS,
        "mentions": MENTIONS, "token_divergence": [float(step + 1) for step in range(len(TOKENS))],
        "summed_ratio": [float(value) for value in draw.uniform(0, 1, len(TOKENS))],
        "log_probability": [-float(value) for value in draw.uniform(0, 3, len(TOKENS))],
        "per_head": {name: heads(value) for name, value in most.items()},
        "at_mentions": [{"divergence": heads(6.0), "image_mass": heads(0.8)} for _ in MENTIONS],
        "controls": {**controls, "area": 0.1, "objects": 1.0},
        "explained": {f"{name}_{what}": 0.3 for name in METHODS for what in MEASURES} if number < 4 else None,
        "sinks": {
            "attention": {"count": 3, "in_background": 2.0, "base": 0.8, "image_tokens": 100},
            "dimension": {"count": [0, 2, 2, 1], "in_background": [0, 2, 1, 1], "base": 0.8, "image_tokens": 100},
        },
    }  # fmt: skip


def write_vision(folder: Path, *, pictures: int = 8, silent: bool = False) -> Run:
    """A finished run: the maps of the first picture are kept. silent: no caption names anything, and no map is kept."""
    rows = [row(f"scene-{number}", number) for number in range(pictures)]
    for each in rows:
        each |= {"mentions": [], "at_mentions": [], "controls": {}} if silent else {}
    if not silent:
        rows[0]["arrays"] = "scene-0.safetensors"
    shown = tuple(Picture(each["picture"], (), "park", ("dog",), lambda: Image.new("RGB", (8, 8))) for each in rows)
    names = dict.fromkeys(("cat", "dog", "kite", "umbrella", "cup"), ())
    among = PictureSet("themed-hard", shown, Vocabulary(names))
    record = {"case": "themed-hard-0", "set": "themed-hard", "rows": rows}
    frame = metric_frame(rows, seed=0)
    more = {
        "question": "Describe the image in detail.", "new_tokens": 100,
        "blank": {"caption": "A cup.", "objects": ["cup"]},
        "sink_dimensions": {"found": [3], "why_not": None}, "beside": None,
    }  # fmt: skip
    with OpenRun.start(folder, "vision", {"made": "by hand"}) as run:
        run.note(model=MODEL, total_cases=1)
        write_arrays(run.run.path / "arrays", "scene-0")
        run.add_case(record)
        run.finish(heads=frame, summary={**summarise([record], frame, [among], ratio=0.8, seed=0), **more})
    return run.run


def write_hallucination(folder: Path, *, pictures: int = 8) -> Run:
    """A finished run of two arms and a control. `vhr` names the cat alone; the others a dog and an umbrella too."""
    few, alone = TOKENS[:6] + TOKENS[-1:], "".join(TOKENS[:6] + TOKENS[-1:])
    arms = [Arm("none", mitigation("none"), 0), Arm("vhr", mitigation("none"), 0)]
    arms.append(Arm("vhr, random heads 1", mitigation("none"), 1, "vhr"))
    records = []
    for arm in arms:
        said = {"tokens": few, "caption": alone, "mentions": MENTIONS[:1]} if arm.name == "vhr" else {}
        rows = [{**row(f"scene-{number}", number), **said} for number in range(pictures)]
        rows = [{**each, "counts": asdict(caption_counts(each))} for each in rows]
        answers = [
            {"picture": each["picture"], "object": name, "present": name != "dog", "splits": list(SPLITS),
             "yes": name != "dog" or arm.name == "none", "share": 0.7}
            for each in rows
            for name in ("cat", "dog")
        ]  # fmt: skip
        for task, some in (("captions", rows), ("pope", answers)):
            case = f"themed-hard/{arm.name}/{task}/0"
            records.append({"case": case, "set": "themed-hard", "arm": arm.name, "task": task, "rows": some})
    more = {"question": "Describe the image in detail.", "new_tokens": 100, "tasks": list(TASKS), "part": "judge"}
    with OpenRun.start(folder, "hallucinate", {"made": "by hand"}) as run:
        run.note(model=MODEL, total_cases=len(records))
        for record in records:
            run.add_case(record)
        run.finish(
            heads=None, summary={**hallucination_summary.summarise(records, ["themed-hard"], arms, seed=0), **more}
        )
    return run.run


if __name__ == "__main__":
    write_vision(Path(sys.argv[1]))
    write_hallucination(Path(sys.argv[1]))
