"""What a reader uploads is kept by its content, and refused by its content too."""

import io
from pathlib import Path

import pytest
from PIL import Image

from analysis.jobs.folder import jobs
from analysis.jobs.uploads import LARGEST_PICTURE, LARGEST_TEXT, keep_picture, keep_text
from probes.errors import HeadscopeError


def encoded(kind: str, side: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, kind)
    return file.getvalue()


def test_the_same_text_is_kept_once_and_is_no_job(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    first, again = keep_text("The cat sat.\u202e<b>", out), keep_text("The cat sat.\u202e<b>", out)
    assert first == again
    assert first.read_text() == "The cat sat.\u202e<b>"
    assert keep_text("Another.", out) != first
    assert jobs(out) == ([], [])


def test_half_a_surrogate_becomes_a_question_mark_and_no_error(tmp_path: Path) -> None:
    assert keep_text("a\ud800b", tmp_path / "runs").read_text() == "a?b"


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp")])
def test_a_picture_is_named_by_what_it_is(tmp_path: Path, kind: str, suffix: str) -> None:
    content = encoded(kind)
    kept = keep_picture(content, tmp_path / "runs")
    assert kept.suffix == suffix
    assert kept.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<svg onload=alert(1)></svg>", "no picture that can be read"),
        (b"%PDF-1.4", "no picture that can be read"),
        (encoded("GIF"), "no picture that can be read"),
        (encoded("PNG")[:20], "no picture that can be read"),
        (encoded("PNG", 4), "both sides need at least 8"),
        (encoded("PNG") + b"\0" * LARGEST_PICTURE, "scale it down"),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused_and_nothing_is_kept(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    with pytest.raises(HeadscopeError, match=sentence):
        keep_picture(content, tmp_path / "runs")
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(("text", "sentence"), [(" \n", "empty"), ("a" * (LARGEST_TEXT + 1), "at most 2,000,000")])
def test_an_empty_and_an_endless_text_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(HeadscopeError, match=sentence):
        keep_text(text, tmp_path / "runs")
