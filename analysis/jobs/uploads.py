"""What a reader gives from their own disk: kept beside the jobs, whose lines name it, by a hash of its content."""

import hashlib
import io
import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from analysis.jobs.lock import jobs_folder
from analysis.runs import RUNS, writing
from probes.errors import HeadscopeError
from probes.images import check_size

FOLDER = ".uploads"  # in the jobs folder, where a name that begins with a dot is no job
LARGEST_TEXT = 2_000_000  # bytes
LARGEST_PICTURE = 10_000_000  # bytes
PICTURES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}


def keep_text(text: str, out: Path = RUNS) -> Path:
    """Raises HeadscopeError for an empty text and for one of more than LARGEST_TEXT bytes."""
    content = text.encode(errors="replace")
    if not content.strip():
        raise HeadscopeError("The text is empty: write a prompt.")
    if len(content) > LARGEST_TEXT:
        raise HeadscopeError(f"The text has {len(content):,} bytes, and at most {LARGEST_TEXT:,} are taken: cut it.")
    return _keep(content, ".txt", out)


def keep_picture(content: bytes, out: Path = RUNS) -> Path:
    """Raises HeadscopeError for what is no PNG, JPEG or WebP, whatever its name says, and for one that is too large."""
    if len(content) > LARGEST_PICTURE:
        raise HeadscopeError(
            f"The picture has {len(content):,} bytes, and at most {LARGEST_PICTURE:,} are taken: scale it down first."
        )
    try:
        with Image.open(io.BytesIO(content), formats=tuple(PICTURES)) as picture:
            check_size(picture, "The picture")
            suffix = PICTURES[str(picture.format)]
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise HeadscopeError("The file is no picture that can be read: use a PNG, JPEG or WebP.") from None
    return _keep(content, suffix, out)


def _keep(content: bytes, suffix: str, out: Path) -> Path:
    path = jobs_folder(out) / FOLDER / f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    if not path.exists():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(f".{os.getpid()}")
            scratch.write_bytes(content)
            scratch.replace(path)
    return path
