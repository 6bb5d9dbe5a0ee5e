"""A user's own folder of images, with annotations as COCO's instances JSON has them.

    pictures = read_folder(Path("val2014"), Path("instances.json"))
    vocabulary = read_vocabulary(Path("instances.json"))

The JSON has three lists: images (id, file_name, width, height), categories (id, name) and annotations (image_id,
category_id, bbox as left, top, width and height in pixels). Only images that the JSON lists are read.
"""

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from analysis.vision.objects import Vocabulary, named
from analysis.vision.pictures import Box, Picture, Seen
from probes.errors import HeadscopeError
from probes.images import open_image

LISTS = ("images", "annotations", "categories")


def read_folder(images: Path, annotations: Path) -> list[Picture]:
    """The pictures in the order of the JSON, their ids as text, their objects in the order of the annotations.

    Boxes that reach over the edge by a little, as COCO's do, are cut at the edge. Themes and likely objects are
    unknown: None and empty. The whole folder is refused, in one sentence of HeadscopeError, for a missing folder or
    file, JSON of another form, ids that are repeated or unknown, boxes that lie outside, and for an image without any
    object: what is scored against nothing would count as invented.
    """
    if not images.is_dir():
        raise HeadscopeError(f"{images} is not a folder; give the folder that holds the images.")
    lists = _read(annotations)
    names = _names(lists["categories"], annotations)
    listed = _by_id(lists["images"], "image", annotations)
    if not listed:
        raise HeadscopeError(f"{annotations} lists no image; its list `images` needs at least one.")
    files = {key: _file(images, image, annotations) for key, image in listed.items()}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        more = f", nor are {len(missing) - 1} more" if len(missing) > 1 else ""
        raise HeadscopeError(f"{missing[0]} is listed in {annotations} and not in {images}{more}.")
    seen = _seen(lists["annotations"], listed, names, annotations)
    if empty := [str(key) for key in listed if not seen[key]]:
        more = f", nor for {len(empty) - 1} more" if len(empty) > 1 else ""
        raise HeadscopeError(
            f"{annotations} has no annotation for image {empty[0]}{more}; annotate such images or leave them out."
        )
    return [Picture(str(key), tuple(seen[key]), None, (), partial(open_image, files[key])) for key in listed]


def read_vocabulary(annotations: Path) -> Vocabulary:
    """The categories of the JSON, whether or not an image shows them; names of COCO's classes get COCO's synonyms.

    Raises HeadscopeError for a file that is missing or of another form, and where it has no category.
    """
    return named(_names(_read(annotations)["categories"], annotations).values())


def _read(annotations: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(annotations.read_text(encoding="utf-8"))
    except OSError as error:
        raise HeadscopeError(f"The annotations in {annotations} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise HeadscopeError(f"{annotations} is not JSON: {error}.") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in LISTS):
        raise HeadscopeError(f"{annotations} is not COCO's form: it needs the lists {', '.join(LISTS)}.")
    for name in LISTS:
        if not all(isinstance(entry, dict) for entry in found[name]):
            raise HeadscopeError(f"{annotations} is not COCO's form: every entry of `{name}` must be an object.")
    return found


def _names(categories: list[dict[str, Any]], annotations: Path) -> dict[Hashable, str]:
    found = _by_id(categories, "category", annotations)
    if not found:
        raise HeadscopeError(f"{annotations} has no category; its list `categories` needs at least one.")
    for key, category in found.items():
        if not isinstance(category.get("name"), str) or not category["name"].strip():
            raise HeadscopeError(f"Category {key} in {annotations} has no name; every category needs one.")
    return {key: category["name"].strip() for key, category in found.items()}


def _by_id(entries: list[dict[str, Any]], what: str, annotations: Path) -> dict[Hashable, dict[str, Any]]:
    found: dict[Hashable, dict[str, Any]] = {}
    for entry in entries:
        key = entry.get("id")
        if not isinstance(key, int | str):
            raise HeadscopeError(f"An entry for {what} in {annotations} has no id; each needs a number or a text.")
        if key in found:
            raise HeadscopeError(f"The id {key} stands for more than one {what} in {annotations}; ids must differ.")
        found[key] = entry
    return found


def _file(images: Path, image: Mapping[str, Any], annotations: Path) -> Path:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise HeadscopeError(f"Image {image['id']} in {annotations} has no file_name; every image needs one.")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise HeadscopeError(f"{name} in {annotations} lies outside {images}; file names are relative to that folder.")
    for side in ("width", "height"):
        if not _is_number(image.get(side)) or image[side] <= 0:
            raise HeadscopeError(
                f"Image {image['id']} in {annotations} has no {side} in pixels; every image needs one."
            )
    return images / name


def _seen(
    entries: list[dict[str, Any]],
    images: Mapping[Hashable, Mapping[str, Any]],
    names: Mapping[Hashable, str],
    annotations: Path,
) -> dict[Hashable, list[Seen]]:
    found: dict[Hashable, list[Seen]] = defaultdict(list)
    for at, entry in enumerate(entries):
        where = f"Annotation {entry.get('id', f'number {at + 1}')} in {annotations}"
        image, category = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image, int | str) or image not in images:
            raise HeadscopeError(f"{where} belongs to image {image}, which is not among its images.")
        if not isinstance(category, int | str) or category not in names:
            raise HeadscopeError(f"{where} is of category {category}, which is not among its categories.")
        found[image].append(Seen(names[category], _box(entry.get("bbox"), images[image], where)))
    return found


def _box(bbox: Any, image: Mapping[str, Any], where: str) -> Box:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise HeadscopeError(f"{where} has no bbox; it needs left, top, width and height in pixels.")
    left, top, width, height = bbox
    box = (
        _within(left / image["width"]),
        _within(top / image["height"]),
        _within((left + width) / image["width"]),
        _within((top + height) / image["height"]),
    )
    if box[0] >= box[2] or box[1] >= box[3]:
        raise HeadscopeError(f"{where} has a bbox that holds no part of its image: {bbox} in pixels.")
    return box


def _within(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
