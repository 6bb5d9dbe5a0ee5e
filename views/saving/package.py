"""The files of a saved view: a page alone, or a zip with its figures and tables beside it."""

import io
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from analysis.runs import writing
from probes.errors import HeadscopeError
from views.saving.document import document
from views.saving.elements import Writer
from views.saving.replay import replay
from views.saving.view import View

ALWAYS = (1980, 1, 1, 0, 0, 0)  # a zip wants a time of each file; the same view gives the same bytes


def save(views: Sequence[View], to: Path) -> None:
    """Write one view as .html, or any number of them as .zip. Raises HeadscopeError for any other suffix."""
    match to.suffix.lower():
        case ".html" if len(views) == 1:
            content = page(views[0])
        case ".html":
            raise HeadscopeError("A page holds one view: give one address, or name a .zip for all of them.")
        case ".zip":
            content = zipped(views)
        case _:
            raise HeadscopeError(f"{to} is neither .html (the page) nor .zip (the page, its figures and its tables).")
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        scratch = to.with_name(f".{to.name}.{os.getpid()}")
        try:
            scratch.write_bytes(content)
            scratch.replace(to)
        finally:
            scratch.unlink(missing_ok=True)


def page(view: View) -> bytes:
    return document(replay(view), Writer()).encode()


def zipped(views: Sequence[View]) -> bytes:
    """Several views lie each in a folder of its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for folder, view in zip(_folders(views), views, strict=True):
            for name, content in contents(view).items():
                archive.writestr(zipfile.ZipInfo(folder + name, ALWAYS), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def contents(view: View) -> Mapping[str, bytes]:
    """page.html, figures/ as PNG and SVG, tables/ as CSV and parquet: those of the page and those behind its charts."""
    writer = Writer()
    files = {"page.html": document(replay(view), writer).encode()}
    for figure in writer.figures:
        files |= _under("figures", figure.files()) | _under("tables", figure.data_files())
    for table in writer.tables:
        files |= _under("tables", table.files())
    return files


def _under(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def _folders(views: Sequence[View]) -> Iterable[str]:
    if len(views) == 1:
        return [""]
    return [f"{number:02}-{view.page}/" for number, view in enumerate(views, 1)]
