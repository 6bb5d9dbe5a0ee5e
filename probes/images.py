"""Pictures from files: read once, as RGB, and refused in a sentence where they can't be."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from probes.errors import HeadscopeError

LARGEST_IMAGE = 64_000_000  # pixels; a file of a few kilobytes can claim more and fill the memory once unpacked
SMALLEST_SIDE = 8  # pixels


def open_image(path: str | Path) -> Image.Image:
    """The picture in a file as RGB, turned the way its camera says.

    Raises HeadscopeError where there is no file, where it is no picture or a damaged one, and for sizes that no model
    looks at (`check_size`).
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of decompression bombs at a size of its own; ours is checked before anything is unpacked.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                check_size(image, str(path))
                return ImageOps.exif_transpose(image).convert("RGB")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise HeadscopeError(f"There is no image at {path}.") from error
    except Image.DecompressionBombError as error:
        raise HeadscopeError(
            f"{path} claims far more than {LARGEST_IMAGE // 1_000_000} megapixels, the most that is opened: "
            "scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise HeadscopeError(f"{path} is no image that can be read: use a PNG, JPEG or WebP file.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise HeadscopeError(f"{path} is a damaged image and can't be read ({error}).") from error


def check_size(image: Image.Image, name: str = "The image") -> None:
    """Raises HeadscopeError for a picture of more than LARGEST_IMAGE pixels or with a side below SMALLEST_SIDE."""
    width, height = image.size
    if width * height > LARGEST_IMAGE:
        raise HeadscopeError(
            f"{name} has {width} x {height} pixels, and at most {LARGEST_IMAGE // 1_000_000} megapixels are opened: "
            "scale it down first."
        )
    if min(width, height) < SMALLEST_SIDE:
        raise HeadscopeError(
            f"{name} has {width} x {height} pixels: both sides need at least {SMALLEST_SIDE} for anything to be seen."
        )
