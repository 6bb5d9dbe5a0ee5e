"""`headscope vision` on a tiny random LLaVA whose captions are given, as its own say nothing."""

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from analysis.cli import main
from analysis.runs import Run, list_runs
from analysis.vision import drawing, inventions, looking, scenes
from analysis.vision.cases import Choice, picture_sets
from analysis.vision.head_rankings import compare
from analysis.vision.kept_pictures import file_name, keep
from tests.probes.families import folder_of

Verb = Callable[..., Run]
STATEMENT = "This is a kitchen. There is a {}. A {}."
NAMES = ("apple", "dog", "fish")
OTHER = "cat"


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of("llava", tmp_path_factory.mktemp("llava"))


def spoken(subject: Any, prompts: Sequence[Any], *, new_tokens: int) -> list[list[int]]:
    """The first prompt's picture is said to show an apple and a cat, the second's a dog and a cat, ..."""
    said = [STATEMENT.format(NAMES[i % 3], OTHER) for i in range(len(prompts))]
    return [subject.tokenizer.encode(text, add_special_tokens=False)[:new_tokens] for text in said]


@pytest.fixture
def run_vision(tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> Verb:
    monkeypatch.setattr(looking, "generate", spoken)

    def run(*more: str) -> Run:
        given = ["--model", str(tiny_llava), "--pictures", "themed-clear", "--new-tokens", "60", "--json"]
        before = {run.id for run in list_runs(tmp_path)[0]}
        headscope("vision", *given, "--out", str(tmp_path), *more)
        runs = list_runs(tmp_path)[0]
        return next((run for run in runs if run.id not in before), runs[0])

    return run


def headscope(*arguments: str) -> None:
    """The command line, which ends by leaving the program."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def test_a_run_keeps_what_was_said_what_was_invented_and_the_numbers_of_every_head(run_vision: Verb) -> None:
    run = run_vision("--count", "5", "--batch", "3", "--shown", "2")
    records = run.cases()
    assert [record["case"] for record in records] == ["themed-clear-0", "themed-clear-1"]
    rows = [row for record in records for row in record["rows"]]
    truth = scenes.scenes("themed-clear", count=5)
    for row, scene in zip(rows, truth, strict=True):
        assert row["picture"] == scene.id
        assert "".join(row["tokens"]) == row["caption"]
        for mention, read in zip(row["mentions"], row["at_mentions"], strict=True):
            assert row["caption"][mention["start"] : mention["stop"]] == mention["name"]
            assert mention["invented"] == (mention["name"] not in scene.names)
            assert row["tokens"][mention["step"]] == mention["name"][0]  # the tiny tokenizer reads letters
            assert np.shape(read["divergence"]) == (2, 4)
        assert len(row["token_divergence"]) == len(row["tokens"])
        masses = sum(np.array(row["per_head"][f"{name}_mass"]) for name in ("image", "system", "question", "generated"))
        np.testing.assert_allclose(masses, 1, atol=1e-4)
    frame = run.heads()
    mean = np.mean([row["per_head"]["divergence"][1][2] for row in rows])
    own = frame[(frame["metric"] == "divergence") & (frame["layer"] == 1) & (frame["head"] == 2)]
    assert own["value"].item() == pytest.approx(mean)
    assert own["low"].item() <= mean <= own["high"].item()
    summary = run.summary()
    assert summary["sets"]["themed-clear"]["chair"]["objects"]["value"] == 2
    assert summary["blank"]["objects"] == ["apple", "cat"]
    assert "NaN" not in json.dumps(summary)


def test_maps_are_kept_of_the_first_pictures_alone_and_read_back_as_the_attention_on_the_image(
    run_vision: Verb,
) -> None:
    run = run_vision("--count", "5", "--batch", "3", "--shown", "4")
    rows = [row for record in run.cases() for row in record["rows"]]
    assert ["arrays" in row for row in rows] == [True] * 4 + [False]
    for row in rows[:4]:
        arrays = load_file(run.path / "arrays" / row["arrays"])
        assert arrays["picture"].shape == (scenes.SIDE, scenes.SIDE, 3)
        maps = arrays["maps"] / 255 * arrays["scale"][..., None].astype(float)
        per_head = maps.sum(-1).mean(0).reshape(2, 4)
        np.testing.assert_allclose(per_head, row["per_head"]["image_mass"], rtol=0.02, atol=0.002)


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(run_vision: Verb) -> None:
    whole = run_vision("--count", "4", "--batch", "2", "--shown", "0")
    cases, summary = (whole.path / "cases.jsonl").read_text(), (whole.path / "summary.json").read_text()
    (whole.path / "cases.jsonl").write_text(cases.splitlines(keepends=True)[0])
    (whole.path / "summary.json").unlink()
    manifest = json.loads((whole.path / "manifest.json").read_text())
    (whole.path / "manifest.json").write_text(json.dumps({**manifest, "state": "stopped"}))
    again = run_vision("--count", "4", "--batch", "2", "--shown", "0", "--resume", whole.id)
    assert again.id == whole.id
    assert (whole.path / "cases.jsonl").read_text() == cases
    assert (whole.path / "summary.json").read_text() == summary


def test_a_run_beside_itself_ranks_the_heads_alike(run_vision: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_vision("--count", "3")
    second = run_vision("--count", "3", "--with", first.id)
    beside = second.summary()["beside"]
    assert beside["run"] == first.id
    assert beside["divergence"]["paired"]
    assert beside["divergence"]["correlation"]["value"] == pytest.approx(1)
    assert beside["image_mass"]["overlap"]["value"] == 1
    headscope("runs", second.id, "--out", str(second.path.parent))
    assert "Beside" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(run_vision: Verb, tmp_path: Path, tiny_llava: Path) -> None:
    headscope("vision", "--model", str(tiny_llava), "--count", "2", "--dry-run", "--json", "--out", str(tmp_path))
    assert not list_runs(tmp_path)[0]


def test_runs_of_other_pictures_are_compared_unpaired() -> None:
    rows = [{"picture": f"a{i}", "per_head": {"divergence": [[1.0, 2.0 + i]]}} for i in range(3)]
    others = [{"picture": f"b{i}", "per_head": {"divergence": [[3.0, 1.0]]}} for i in range(4)]
    found = compare(rows, others, run="r", model="m", seed=0)
    assert not found["divergence"]["paired"]
    assert found["divergence"]["correlation"]["value"] == -1
    assert "ratio" not in found


def test_invented_objects_of_the_theme_are_set_against_those_that_luck_would_give() -> None:
    among = picture_sets(Choice(pictures="themed-clear", count=2))[0]
    phrase, objects = next((phrase, sorted(objects)) for phrase, objects in among.themes.items())
    shown, invented = objects[0], objects[1]
    other = next(name for name in among.vocabulary.names if name not in objects)
    caption = f"This is {phrase}. A {shown}, a {invented} and a {other}."
    row = {
        "picture": "a", "caption": caption, "tokens": list(caption), "likely": [],
        "objects": [{"name": shown, "box": [0, 0, 1, 1]}],
        "mentions": [{"name": one.name, "start": one.start, "stop": one.stop, "step": one.start,
                      "invented": one.name != shown} for one in among.vocabulary.mentions(caption)],
    }  # fmt: skip
    found = inventions.company([row], among, seed=0)
    assert found["theme"]["invented"] == 2
    assert found["theme"]["share"]["value"] == pytest.approx(1 / 2)
    absent = len(among.vocabulary.names) - 1
    assert found["theme"]["expected"]["value"] == pytest.approx((len(objects) - 1) / absent)
    assert "likely" not in found


def test_a_detector_without_an_invented_object_says_why_it_is_not_judged() -> None:
    found = inventions.detectors([], seed=0)
    assert found["words"] == 0
    assert "why_not" in found["token_divergence"]
    assert "why_not" in found["divergence_of_heads"]


def test_a_picture_whose_id_is_a_path_is_kept_under_another_name(tmp_path: Path) -> None:
    assert file_name("../../etc/x", "mine-0-1") == "mine-0-1.safetensors"
    assert file_name(".hidden", "mine-0-1") == "mine-0-1.safetensors"
    assert file_name("themed-hard-judge-3", "mine") == "themed-hard-judge-3.safetensors"
    image = drawing.pictures(scenes.scenes("themed-clear", count=1))[0].read().resize((1280, 320))
    maps = np.zeros((2, 1, 1, 4))
    maps[1, 0, 0] = [0, 0.1, 0.2, 0.4]
    keep(tmp_path / "arrays" / "x.safetensors", image, maps, np.full((4, 4), np.nan), np.ones(2))
    found = load_file(tmp_path / "arrays" / "x.safetensors")
    assert found["picture"].shape == (160, 640, 3)
    assert found["maps"][:, 0].tolist() == [[0, 0, 0, 0], [0, 64, 128, 255]]


def test_a_unit_of_work_can_be_sent_to_a_worker() -> None:
    each = picture_sets(Choice(pictures="counter-hard", count=2))[0]
    sent = pickle.loads(pickle.dumps(looking.Looking(each, 0, each.pictures)))
    assert sent.pictures == each.pictures
    assert sent.pictures[1].read().tobytes() == each.pictures[1].read().tobytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--pictures", "themed-blurred"], "There is no set of scenes 'themed-blurred'"),
        (["--images", "pictures"], "--images and --annotations go together"),
        (["--part", "test"], "'test' is no part of a set"),
        (["--with", "nothing"], "There is no run named nothing"),
        (["--question", " "], "The question is empty"),
        (["--new-tokens", "5000"], "go beyond the 512 positions"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(
    options: list[str], sentence: str, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["vision", "--model", str(tiny_llava), "--count", "2", "--out", str(tmp_path), *options])
    assert sentence in capsys.readouterr().err
    assert not list_runs(tmp_path)[0]


def test_a_model_that_reads_text_alone_is_refused(
    tiny_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["vision", "--model", str(tiny_folder()), "--count", "2", "--out", str(tmp_path)])
    assert "reads text alone: pictures need a vision-language model" in capsys.readouterr().err


@pytest.fixture
def own_images(tmp_path: Path) -> tuple[Path, Path]:
    """Two images of a square, with annotations."""
    folder = tmp_path / "images"
    folder.mkdir()
    images, marks = [], []
    for i in range(2):
        Image.new("RGB", (40, 30), (200, 80 * i, 0)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 40, "height": 30})
        marks.append({"id": i, "image_id": i, "category_id": 1, "bbox": [4, 3, 20, 15]})
    listed = {
        "images": images,
        "annotations": marks,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(listed))
    return folder, tmp_path / "instances.json"


def test_a_folder_with_annotations_is_looked_at_like_the_scenes(
    own_images: tuple[Path, Path], run_vision: Verb
) -> None:
    images, annotations = own_images
    run = run_vision("--images", str(images), "--annotations", str(annotations))
    found = run.summary()["sets"]["images"]
    assert found["n"] == 2
    assert found["detectors"]["invented"] == 1  # the dog; the apple is in no list
    assert found["company"] == {}
    assert found["grounding"]["n"] == 2


@pytest.mark.parametrize("damage", [b"", b"no image"])
def test_an_image_that_cannot_be_read_is_refused_before_the_work_starts(
    damage: bytes,
    own_images: tuple[Path, Path],
    tiny_llava: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, annotations = own_images
    (images / "1.png").write_bytes(damage)
    given = ["--images", str(images), "--annotations", str(annotations), "--out", str(tmp_path / "runs")]
    with pytest.raises(SystemExit):
        main(["vision", "--model", str(tiny_llava), *given])
    assert "1.png is no image that can be read" in capsys.readouterr().err
    assert not list_runs(tmp_path / "runs")[0]
