"""Pictures from files."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from probes.errors import HeadscopeError
from probes.images import check_size, open_image


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16"])
def test_any_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    Image.new(mode, (20, 10)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (20, 10))


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 10)).save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (10, 20)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_file_that_would_fill_the_memory_is_refused_before_it_is_unpacked(tmp_path: Path, side: int) -> None:
    with pytest.raises(HeadscopeError, match="64 megapixels"):
        open_image(bomb(tmp_path / "bomb.png", side))


def test_what_is_no_picture_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:800])
    for name, sentence in {
        "absent.png": "There is no image at",
        ".": "There is no image at",
        "text.png": "is no image that can be read",
        "cut.png": "is a damaged image",
    }.items():
        with pytest.raises(HeadscopeError, match=sentence):
            open_image(tmp_path / name)


def test_a_picture_too_small_to_see_is_refused() -> None:
    check_size(Image.new("RGB", (8, 8)))
    with pytest.raises(HeadscopeError, match="at least 8"):
        check_size(Image.new("RGB", (200, 7)))
