"""`headscope map` over a prompt with a picture: families of models, what is kept of the picture, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from xarray import DataArray

from analysis.cli import main
from analysis.maps.exact import column, mass, row
from analysis.maps.image_looks import head_looks, head_order, look_at, patch_table, widest_look
from analysis.maps.keeping_pictures import MOST_BYTES, keep_picture, picture_record
from analysis.maps.kept_picture import kept_picture
from analysis.maps.tiles import tile
from analysis.runs import Run, list_runs
from analysis.vision.pictures import Picture
from analysis.vision.scenes import scene_called
from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.image_prompt import continued, image_prompt
from probes.patch_grid import patch_names
from probes.subject import Subject, load
from tests.probes.families import FAMILIES, folder_of

QUESTION = "What is it?"
HALF_PRECISION = 4e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    known: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in known:
            known[family] = folder_of(family, tmp_path_factory.mktemp(family))
        return known[family]

    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image = Image.new("RGB", (320, 200), "navy")
    ImageDraw.Draw(image).rectangle((40, 40, 200, 120), fill="white")
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def mapped(folder: Path, *arguments: str) -> Run:
    with pytest.raises(SystemExit) as ended:
        main(["map", "--out", str(folder), *arguments])
    assert ended.value.code in (0, None), ended.value.code
    runs, problems = list_runs(folder)
    assert not problems
    return runs[0]


def own_maps(subject: Subject, run: Run, photo: Path, own_attention: Any) -> tuple[Any, np.ndarray]:
    """The prompt that the run must have read, and (layer, head, query, key) by the model's own eager attention."""
    prompt = image_prompt(subject, Image.open(photo), QUESTION)
    prompt = continued(prompt, run.cases()[0]["ids"][len(prompt) :])
    with torch.inference_mode(), own_attention(subject):
        found = forward(subject, collate(subject, [prompt]), output_attentions=True).attentions
    return prompt, torch.stack(found)[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_kept_are_those_of_a_plain_forward_with_the_picture_and_the_answer(
    family: str, model: Callable[[str], Path], photo: Path, tmp_path: Path, own_attention: Any
) -> None:
    asked = ["--model", str(model(family)), "--image", str(photo), "--prompt", QUESTION, "--new-tokens", "3"]
    run = mapped(tmp_path / "runs", *asked)
    prompt, own = own_maps(load(str(model(family)), device="cpu"), run, photo, own_attention)
    record, kept = run.cases()[0], kept_picture(run)
    assert kept is not None
    assert record["ids"] == prompt.ids.tolist()
    assert kept.positions == list(prompt.spans["image"])
    assert kept.names == [name.strip("[]") for name in patch_names(prompt.grids, len(prompt.patches))]
    np.testing.assert_allclose(kept.patches, prompt.patches, atol=1e-6)
    tokens = [token for layer in kept.layers().values() for token in layer]
    assert sorted(tokens) == np.flatnonzero(~np.isnan(kept.patches).any(1)).tolist()
    for query in (kept.positions[0], kept.positions[-1], len(prompt) - 1):  # Gemma's image tokens see each other
        for head in (Head(0, 1), Head(1, 2)):
            np.testing.assert_allclose(row(run, [head], query), own[head.layer, head.head, query], atol=HALF_PRECISION)
    np.testing.assert_allclose(tile(run, Head(1, 2)), own[1, 2], atol=HALF_PRECISION)
    np.testing.assert_allclose(
        column(run, [Head(0, 1)], kept.positions[1]), own[0, 1, :, kept.positions[1]], atol=0.004
    )
    shares = mass(run, [Head(1, 2)], kept.positions)
    np.testing.assert_allclose(shares, own[1, 2][:, kept.positions].sum(-1), atol=2e-2)
    look = look_at(kept, row(run, [Head(1, 2)], len(prompt) - 1), range(len(kept.patches)))
    assert look.whole == pytest.approx(float(shares[-1]))
    behind = own[:, :, kept.positions[-1] + 1 :][..., kept.positions].sum(-1).mean(-1)
    np.testing.assert_allclose(record["per_head"]["image_share"], behind, atol=5e-3)
    assert head_order(run)[0] == Head(*divmod(int(np.argmax(record["per_head"]["image_share"])), 4))


def test_image_tokens_are_called_by_their_patch_and_generated_ones_by_what_they_say(
    model: Callable[[str], Path], photo: Path, tmp_path: Path
) -> None:
    run = mapped(tmp_path / "runs", "--model", str(model("llava")), "--image", str(photo), "--new-tokens", "5")
    record = run.cases()[0]
    [[start, stop]] = record["spans"]["image"]
    assert record["texts"][start:stop][:5] == [*(f"[patch r0c{column}]" for column in range(4)), "[patch r1c0]"]
    assert "Describe the image in detail." in "".join(record["texts"])
    [[first, last]] = record["spans"]["generated"]
    subject = load(str(model("llava")), device="cpu")
    assert "".join(record["texts"][first:last]) == subject.tokenizer.decode(record["ids"][first:last])
    assert run.summary()["picture"] == "photo.png"
    assert run.summary()["answer"] == "".join(record["texts"][first:last])


def test_a_text_alone_is_read_with_its_answer_only_when_one_is_asked_for(
    tiny_folder: Callable[[], Path], tmp_path: Path
) -> None:
    asked = ["--model", str(tiny_folder()), "--prompt", "The cat sat on the mat."]
    bare = mapped(tmp_path / "bare", *asked).cases()[0]
    assert "generated" not in bare["spans"]
    run = mapped(tmp_path / "runs", *asked, "--new-tokens", "6")
    record = run.cases()[0]
    assert record["ids"][: bare["tokens"]] == bare["ids"]
    assert record["spans"]["generated"] == [[bare["tokens"], record["tokens"]]]
    assert 1 <= record["tokens"] - bare["tokens"] <= 6
    assert float(row(run, [Head(1, 0)], record["tokens"] - 1).sum()) == pytest.approx(1)
    assert kept_picture(run) is None


def test_a_scene_is_kept_with_the_boxes_of_its_objects_and_is_what_a_model_that_sees_is_shown_by_itself(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = ["--model", str(model("llava")), "--new-tokens", "0"]
    run = mapped(tmp_path / "one", *asked, "--scene", "themed-hard-judge-3")
    kept = kept_picture(run)
    assert kept is not None
    assert [each["name"] for each in kept.objects] == list(scene_called("themed-hard-judge-3").names)
    assert kept.size == (160, 160) == kept.pixels.shape[:2]
    itself = kept_picture(mapped(tmp_path / "two", *asked))
    assert itself is not None
    assert itself.name == "themed-clear-judge-0"
    table = patch_table(itself, look_at(itself, row(run, [Head(0, 0)], 30), range(16)), range(16))
    assert table["weight"].is_monotonic_decreasing
    assert set(", ".join(table["object"]).split(", ")) - {""} <= {each["name"] for each in itself.objects}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image", "nowhere.png"], "There is no image at nowhere.png"),
        (["--image", "pyproject.toml"], "is no image that can be read"),
        (["--image", "README.md", "--scene", "themed-hard-judge-3"], "choose one"),
        (["--scene", "themed-hard"], "A scene is called by set, part and number"),
        (["--scene", "themed-soft-judge-1"], "There is no set of scenes 'themed-soft'"),
        (["--scene", "themed-hard-judge-3", "--tokens", "50"], "leave --tokens out"),
        (["--scene", "themed-hard-judge-3", "--new-tokens", "600"], "go beyond the 512 positions"),
    ],
)
def test_what_can_not_be_shown_is_refused_in_a_sentence(
    arguments: list[str], sentence: str, model: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        main(["map", "--model", str(model("llava")), "--out", str(tmp_path / "runs"), *arguments])
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_picture_of_too_many_pixels_and_a_model_without_eyes_are_refused(
    model: Callable[[str], Path], tiny_folder: Callable[[], Path], photo: Path, tmp_path: Path, capsys: Any
) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    for folder, image, sentence in (
        (model("llava"), tmp_path / "huge.png", "at most 64 megapixels are opened"),
        (tiny_folder(), photo, "reads text alone: a picture needs a model that sees"),
    ):
        with pytest.raises(SystemExit):
            main(["map", "--model", str(folder), "--image", str(image), "--out", str(tmp_path / "runs")])
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_large_picture_is_kept_smaller_and_a_small_one_pixel_by_pixel(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    subject = load(str(model("llava")), device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (900, 700, 3)).astype(np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(noise[:30, :20])):
        prompt = image_prompt(subject, image, QUESTION)
        keep_picture(tmp_path, Picture("noise", (), None, (), lambda image=image: image), prompt)
        assert (tmp_path / "picture.png").stat().st_size <= MOST_BYTES
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png")), noise[:30, :20])


def test_a_patch_that_takes_the_attention_of_enough_heads_is_a_sink(model: Callable[[str], Path], photo: Path) -> None:
    prompt = image_prompt(load(str(model("llava")), device="cpu"), Image.open(photo), QUESTION)
    received = np.full((5, 4, len(prompt)), 0.01)
    received[2, 1, prompt.spans["image"][6]] = 0.4  # 1 of 20 heads: 5 %
    received[:, :, 0] = 0.9  # the first token is no patch
    picture = Picture("photo", (), None, (), lambda: Image.open(photo))
    found = picture_record(picture, prompt, DataArray(received, dims=("layer", "head", "key")))
    assert found["sinks"] == [6]


def test_the_widest_look_is_that_of_a_token_behind_the_picture(
    model: Callable[[str], Path], photo: Path, tmp_path: Path
) -> None:
    run = mapped(tmp_path / "runs", "--model", str(model("llava")), "--image", str(photo), "--new-tokens", "0")
    kept = kept_picture(run)
    assert kept is not None
    shares = mass(run, [Head(0, 0)], kept.positions)
    shares[kept.positions[3]] = 1.0  # of the picture itself
    shares[kept.positions[-1] + 4] = 0.99
    assert widest_look(shares, kept) == kept.positions[-1] + 4


def test_every_head_of_a_layer_looks_by_its_own_row(model: Callable[[str], Path], photo: Path, tmp_path: Path) -> None:
    run = mapped(tmp_path / "runs", "--model", str(model("smolvlm")), "--image", str(photo), "--new-tokens", "0")
    kept = kept_picture(run)
    assert kept is not None
    assert set(kept.layers()) == {"tiles", "whole"}
    last, whole = run.cases()[0]["tokens"] - 1, kept.layers()["whole"]
    looks = head_looks(run, kept, 1, last, whole)
    assert list(looks) == [Head(1, head) for head in range(4)]
    at = [kept.positions[token] for token in whole]
    for head, look in looks.items():
        np.testing.assert_array_equal(look.attention, row(run, [head], last).values[at])


def test_a_run_whose_picture_is_damaged_says_so(model: Callable[[str], Path], photo: Path, tmp_path: Path) -> None:
    run = mapped(tmp_path / "runs", "--model", str(model("llava")), "--image", str(photo), "--new-tokens", "0")
    cases = run.path / "cases.jsonl"
    whole = json.loads(cases.read_text())
    [grid] = whole["picture"]["grids"]
    for wrong in (
        {"grids": [{**grid, "rows": 10**9}]}, {"grids": [{**grid, "first": 9}]}, {"grids": []}, {"grids": [{}]},
        {"sinks": [16]}, {"sinks": [-1]}, {"sinks": None}, {"size": 3}, {"objects": [{"name": "cat"}]},
        {"objects": [{"name": "cat", "box": [0, 1]}]},
    ):  # fmt: skip
        cases.write_text(json.dumps({**whole, "picture": {**whole["picture"], **wrong}}) + "\n")
        with pytest.raises(HeadscopeError, match="is damaged, or is another run's"):
            kept_picture(run)
    cases.write_text(json.dumps(whole) + "\n")
    assert kept_picture(run) is not None
    (run.path / "arrays" / "picture.png").write_bytes(b"GIF89a")
    with pytest.raises(HeadscopeError, match="no image that can be read"):
        kept_picture(run)
