"""Streamlit's own files, packed: 6 MB of script for a page become less than a third, and the browser keeps them.

Streamlit sends them as they lie on the disk, since packing takes a moment; here each is packed once per server. No
route of ours may stand where Streamlit's files are, so this is a layer around its whole server.
"""

import gzip
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import brotli
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit import file_util

UNDER = "/static"
PACKED = (".js", ".css")  # fonts and pictures are packed already
PACKERS: dict[str, Callable[[bytes], bytes]] = {  # browsers take the first over http on this machine, and over https
    "br": partial(brotli.compress, quality=9),  # 0.1 s for the largest file of a page; 11 takes 2.5 s for a tenth less
    "gzip": partial(gzip.compress, mtime=0),
}
FOR_A_YEAR = "public, immutable, max-age=31536000"  # their names hold a hash of what is in them


class Packed:
    """The server `app`, but for what lies under /static."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._files = PackedFiles(directory=Path(file_util.get_static_dir(), "static"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(f"{UNDER}/"):
            await self._app(scope, receive, send)
            return
        try:
            await self._files({**scope, "root_path": scope.get("root_path", "") + UNDER}, receive, send)
        except HTTPException as error:  # no such file: what would answer it lies within `app`
            await Response(error.detail, error.status_code)(scope, receive, send)


class PackedFiles(StaticFiles):
    """A folder of files whose content never changes under a name."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = FOR_A_YEAR
        taken = Headers(scope=scope).get("accept-encoding", "")
        coding = next((coding for coding in PACKERS if coding in taken), None)
        if coding is None or not isinstance(response, FileResponse) or not path.endswith(PACKED):
            return response
        headers = {"Content-Encoding": coding, "Vary": "Accept-Encoding", "Cache-Control": FOR_A_YEAR}
        content = await to_thread.run_sync(_packed, Path(response.path), coding)
        return Response(content, media_type=response.media_type, headers=headers)


@cache
def _packed(file: Path, coding: str) -> bytes:
    return PACKERS[coding](file.read_bytes())
