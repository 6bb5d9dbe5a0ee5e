"""The page itself: what it shows, above it where it comes from, and all that it needs inside it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

import vl_convert

from analysis.runs import Run, versions
from views import reading
from views.pages import pages
from views.saving.elements import Writer
from views.saving.figures import DARK, LIGHT, chart_config
from views.saving.replay import Answer

HERE = Path(__file__).parent


def document(answer: Answer, writer: Writer) -> str:
    """The page as HTML. Nothing in it asks for anything: its policy allows one script, that of the charts."""
    body = writer.html(answer.main)
    script = _script() if writer.figures else ""
    allowed = f"script-src 'sha256-{_sha256(script)}'; " if script else ""
    policy = (
        f"default-src 'none'; {allowed}style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    title = escape(f"{pages()[answer.view.page].title} · headscope")
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>\n" for name, words in _facts(answer))
    css = (HERE / "page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="referrer" content="no-referrer">\n<title>{title}</title>\n'
        f"<style>\n{css}</style>\n</head>\n<body>\n"
        f"<header><dl>\n{facts}</dl></header>\n<main>\n{body}</main>\n"
        f"<footer>Saved from headscope {escape(versions().get('headscope', ''))}. This page stands still: what it says "
        f"of clicking holds in the dashboard, where the address at the top opens the same view.</footer>\n"
        f"{_charts(script) if script else ''}</body>\n</html>\n"
    )


def _charts(script: str) -> str:
    themes = json.dumps({"light": chart_config(**LIGHT), "dark": chart_config(**DARK)})
    return (
        f"<noscript><p>The charts of this page need JavaScript, which is inside it.</p></noscript>\n"
        f'<script type="application/json" id="themes">{themes}</script>\n<script>{script}</script>\n'
    )


def _facts(answer: Answer) -> Iterator[tuple[str, str]]:
    yield "View", answer.view.address
    if answer.run is not None:
        yield from _facts_of_run(answer.run)


def _facts_of_run(run: Run) -> Iterator[tuple[str, str]]:
    manifest = run.manifest
    model = manifest.get("model") or {}
    yield "Run", f"{run.id} ({reading.state(run)})"
    yield "Model", " · ".join([reading.model_name(run), *(str(model[each]) for each in ("dtype",) if each in model)])
    yield "Made", str(manifest.get("created", "time not recorded"))
    yield "By", f"{manifest.get('argv', 'command not recorded')} · headscope {_version(run)}"


def _version(run: Run) -> str:
    return str((run.manifest.get("versions") or {}).get("headscope", "of a version not recorded"))


@cache
def _script() -> str:
    """Vega and the code that draws with it, as one script."""
    snippet = (HERE / "charts.js").read_text(encoding="utf-8")
    return str(vl_convert.javascript_bundle(snippet)).replace("</script", "<\\/script")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
