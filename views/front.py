"""What the server answers to the address of a page: Streamlit's own page, told where the server is and what it may do.

Streamlit's client looks for its server beside the page that it opens, so that a link to /map asks for
/map/_stcore/health, finds nothing, and says so in the console. Told the address it asks once. The policy in the header
is the browser's: no script but Streamlit's own runs, and nothing is fetched from another machine, whatever a prompt,
a token or the name of a model holds.
"""

import asyncio
import base64
import hashlib
import re
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route
from streamlit import file_util

from views.charts import trust
from views.heap import share_heaps
from views.pages import pages

PAGES = Path(__file__).parent
SERVER_IS_HERE = '<script>window.__streamlit = { BACKEND_BASE_URL: location.origin + "/" }</script>'
INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def routes() -> list[Route]:
    """One for every page; of another address the client says itself that there is no such page."""
    html = Path(file_util.get_static_dir(), "index.html").read_text(encoding="utf-8")
    html = html.replace("<head>", f"<head>{SERVER_IS_HERE}", 1)
    headers = {
        "Content-Security-Policy": policy(html),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    async def front(request: Request) -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    # The names of files, not `views.pages.pages()`: that would import every page before there is a server for it.
    names = ["", "start", *sorted(file.stem for file in PAGES.glob("*.py") if file.stem != "__init__")]
    return [Route(f"/{name}", front) for name in names]


def policy(html: str) -> str:
    """Inline scripts of the page itself by their hashes, no others; Vega makes functions of its expressions (eval)."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in INLINE.findall(html)]
    allowed = {
        "default-src": "'self'",
        "script-src": " ".join(["'self'", "blob:", "'unsafe-eval'", *(f"'sha256-{digest}'" for digest in hashes)]),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'self'",
    }
    return "; ".join(f"{what} {where}" for what, where in allowed.items())


@asynccontextmanager
async def starting(server: Any) -> AsyncIterator[None]:
    """What every page imports is imported beside the server's start: seconds that the first reader need not wait.

    Streamlit opens the browser where it makes the server itself; for a server of ours it leaves that to us.
    """
    share_heaps()
    trust()
    asyncio.get_running_loop().run_in_executor(None, pages)
    if not st.get_option("server.headless"):
        address = str(st.get_option("server.address") or "localhost").replace("0.0.0.0", "localhost")
        url = f"http://{address}:{st.get_option('server.port')}"
        asyncio.get_running_loop().run_in_executor(None, webbrowser.open, url)
    yield
