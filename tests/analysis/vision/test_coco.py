"""A folder with COCO's annotations is read whole, or refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from analysis.vision.coco import read_folder, read_vocabulary
from analysis.vision.pictures import Seen
from probes.errors import HeadscopeError


def described() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "street.png", "width": 40, "height": 20},
            {"id": 3, "file_name": "inner/farm.png", "width": 10, "height": 10},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 99, "name": "windmill"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10]},
            {"id": 2, "image_id": 3, "category_id": 99, "bbox": [-0.5, 0, 5, 10.25], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 20]},
        ],
    }


def write(folder: Path, content: object) -> Path:
    (folder / "images" / "inner").mkdir(parents=True)
    Image.new("RGB", (40, 20), "red").save(folder / "images" / "street.png")
    Image.new("L", (10, 10), 9).save(folder / "images" / "inner" / "farm.png")
    Image.new("RGB", (3, 3)).save(folder / "images" / "not-listed.png")
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_pictures_come_in_the_order_of_the_file_with_boxes_as_fractions(tmp_path: Path) -> None:
    street, farm = read_folder(tmp_path / "images", write(tmp_path, described()))
    assert (street.id, farm.id) == ("7", "3")
    assert street.objects == (Seen("dog", (0.25, 0.25, 0.75, 0.75)), Seen("person", (0, 0, 1, 1)))
    assert farm.objects == (Seen("windmill", (0, 0, 0.45, 1)),)
    assert (farm.theme, farm.likely) == (None, ())


def test_images_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    street, farm = read_folder(tmp_path / "images", write(tmp_path, described()))
    assert street.read().size == (40, 20)
    assert farm.read().mode == "RGB"
    (tmp_path / "images" / "street.png").write_text("no image")
    with pytest.raises(HeadscopeError, match="street"):
        street.read()


def test_all_categories_are_the_vocabulary_and_cocos_get_synonyms(tmp_path: Path) -> None:
    found = described()
    found["categories"].append({"id": 100, "name": "teapot"})
    vocabulary = read_vocabulary(write(tmp_path, found))
    names = [
        mention.name for mention in vocabulary.mentions("A man, a puppy, two windmills, a teapot, a hot dog, a cat")
    ]
    assert names == ["person", "dog", "windmill", "teapot"]


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(found: dict[str, Any]) -> None:
        place: Any = found
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (change("images", to=None), "needs the lists images, annotations, categories"),
        (change("images", to=[]), "lists no image"),
        (change("images", 0, to=5), "every entry of `images`"),
        (change("images", 0, "id", to=None), "entry for image in .* has no id"),
        (change("images", 0, "id", to=3), "id 3 stands for more than one image"),
        (change("images", 0, "file_name", to=""), "Image 7 in .* has no file_name"),
        (change("images", 0, "file_name", to="gone.png"), r"gone.png is listed in .* and not in .*images\.$"),
        (change("images", 0, "file_name", to="../instances.json"), "lies outside"),
        (change("images", 0, "file_name", to="/etc/passwd"), "lies outside"),
        (change("images", 0, "width", to=0), "Image 7 in .* has no width"),
        (change("images", 0, "height", to="20"), "Image 7 in .* has no height"),
        (change("categories", to=[]), "has no category"),
        (change("categories", 0, "name", to=" "), "Category 1 in .* has no name"),
        (change("annotations", to=[]), "no annotation for image 7, nor for 1 more"),
        (change("annotations", 1, "image_id", to=7), r"no annotation for image 3;"),
        (change("annotations", 1, "image_id", to=8), "Annotation 2 .* image 8, which is not among"),
        (change("annotations", 1, "image_id", to=[3]), r"image \[3\], which is not among"),
        (change("annotations", 1, "category_id", to=5), "category 5, which is not among"),
        (change("annotations", 1, "bbox", to=[1, 2, 3]), "Annotation 2 .* has no bbox"),
        (change("annotations", 1, "bbox", to=[1, 2, 3, float("nan")]), "has no bbox"),
        (change("annotations", 1, "bbox", to=[1, 2, 0, 3]), "holds no part of its image"),
        (change("annotations", 1, "bbox", to=[11, 2, 3, 3]), "holds no part of its image"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path: Path, broken: Callable[[dict[str, Any]], None], match: str) -> None:
    found = described()
    broken(found)
    with pytest.raises(HeadscopeError, match=match):
        read_folder(tmp_path / "images", write(tmp_path, found))


@pytest.mark.parametrize(("text", "match"), [("{", "is not JSON"), ("[]", "is not COCO's form"), ("", "is not JSON")])
def test_what_is_no_json_of_cocos_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(HeadscopeError, match=match):
        read_folder(tmp_path / "images", path)
    with pytest.raises(HeadscopeError, match=match):
        read_vocabulary(path)


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, described())
    with pytest.raises(HeadscopeError, match="pictures is not a folder"):
        read_folder(tmp_path / "pictures", path)
    with pytest.raises(HeadscopeError, match="can't be read: No such file"):
        read_folder(tmp_path / "images", tmp_path / "gone.json")
