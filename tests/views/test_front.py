"""Who can reach the dashboard, and what its front page lets a browser do.

pytest tests/views/test_front.py
"""

import gzip
import http.client
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import psutil
import pytest
from streamlit import file_util

from views.served import free_port

SCRIPTS = Path(file_util.get_static_dir(), "static", "js")
ROOT = Path(__file__).resolve().parents[2]
UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "streamlit",
}  # fmt: skip
STREAM = "/_stcore/stream"


@pytest.fixture(scope="module")
def server(started: Callable[[Any, str], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """What `streamlit run app.py` starts where nothing is said about addresses: its process and its port."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless=true", f"--server.port={port}"]
    environment = {**os.environ, "HEADSCOPE_RUNS": str(tmp_path_factory.mktemp("none"))}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        started(process, f"http://localhost:{port}")
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(timeout=20)


def asked(port: int, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def test_only_this_machine_reaches_the_dashboard(server: tuple[int, int]) -> None:
    process, _ = server
    listening = [each.laddr.ip for each in psutil.Process(process).net_connections() if each.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


def test_a_page_of_another_name_that_points_here_opens_no_session(server: tuple[int, int]) -> None:
    _, port = server
    ours, theirs = (f"{name}:{port}" for name in ("localhost", "elsewhere.invalid"))
    answers = {
        (host, origin): asked(port, STREAM, UPGRADE | {"Host": host, "Origin": f"http://{origin}"}).status
        for host, origin in ((ours, ours), (theirs, theirs), (ours, theirs))
    }
    assert answers == {(ours, ours): 101, (theirs, theirs): 403, (ours, theirs): 403}


@pytest.mark.parametrize("path", ["/", "/home", "/heads", "/map?run=none"])
def test_every_page_forbids_foreign_scripts_and_other_machines(server: tuple[int, int], path: str) -> None:
    _, port = server
    answer = asked(port, path, {"Accept": "text/html"})
    rules = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert answer.status == 200
    assert "unsafe-inline" not in rules["script-src"]
    assert rules["default-src"] == rules["form-action"] == rules["frame-ancestors"] == "'self'"
    assert not any("http" in rule or "*" in rule for rule in rules.values())
    assert b"BACKEND_BASE_URL" in answer.read()  # else the client asks beside the page first, and the console says so


@pytest.mark.parametrize(("taken", "sent"), [("gzip", "gzip"), ("gzip, deflate, br", "br")])
def test_scripts_are_sent_packed_to_whoever_takes_them_packed_and_nothing_else_is_sent(
    server: tuple[int, int], taken: str, sent: str
) -> None:
    _, port = server
    script = next(SCRIPTS.glob("index.*.js"))
    plain = asked(port, f"/static/js/{script.name}", {}).read()
    answer = asked(port, f"/static/js/{script.name}", {"Accept-Encoding": taken})
    packed = answer.read()
    assert answer.headers["Content-Encoding"] == sent
    assert plain == script.read_bytes() == {"gzip": gzip.decompress, "br": brotli.decompress}[sent](packed)
    assert len(packed) < len(plain) / 2
    assert "immutable" in answer.headers["Cache-Control"]
    assert "javascript" in answer.headers["Content-Type"]
    for outside in ("/static/../index.html", "/static/%2e%2e/index.html", "/static/js/none.js", "/static/js"):
        assert asked(port, outside, {"Accept-Encoding": taken}).status in (404, 405)


def test_what_is_uploaded_is_bounded_and_nothing_is_told_to_anybody() -> None:
    asking = (
        "import streamlit as st, streamlit.config as c; c._main_script_path = 'app.py'; "
        "names = ['server.maxUploadSize', 'server.enableXsrfProtection', 'server.enableCORS', "
        "'browser.gatherUsageStats', 'client.showErrorDetails', 'client.showErrorLinks']; "
        "print([st.get_option(name) for name in names])"
    )
    told = subprocess.run([sys.executable, "-c", asking], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert told.stdout.strip() == "[20, True, True, False, 'none', 'false']", told.stderr
