"""An HTML page as one file that holds its data, its looks and its script, and needs no network.

Jinja2 escapes what is put into the markup. The texts of the data are never made part of it: they lie in a JSON block,
and the script puts them in as text nodes. The page's own policy lets no script run but that one, and loads nothing.
"""

import base64
import hashlib
from importlib import resources
from typing import Any

BASE = "page.html"
GENERATOR = "contrastive-preference-optimization"
MARKED_WITHIN = 200  # bytes


def render(package: str, name: str, data: Any, /, **values: Any) -> str:
    """The text of an HTML page in one file, with its styles and scripts inside.

    Args:
        package: where the page's own files are: NAME.html, which extends "page.html", NAME.css and NAME.js, which
            stand behind the shared ones.
        name: NAME.
        data: JSON-like, without nan; the script finds it as `data`. None: a page without a script.
        values: what the template names.
    """
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=DictLoader({BASE: _asset("data.page", BASE), name: _asset(package, f"{name}.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # tojson escapes what could end the block: no text can.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style = _asset("data.page", "page.css") + _asset(package, f"{name}.css")
    script = _asset("data.page", "page.js") + _asset(package, f"{name}.js")
    return environment.get_template(name).render(
        # Ours, so no text to escape; the policy names both by their hashes.
        style=Markup(style),
        script=Markup(script),
        style_hash=_source_hash(style),
        script_hash=_source_hash(script),
        data=data,
        mark=_mark(name),
        **values,
    )


def is_rendered(content: bytes, name: str) -> bool:
    """Whether a file is a page of ours of this name."""
    return f'"{_mark(name)}"'.encode() in content[:MARKED_WITHIN]


def _mark(name: str) -> str:
    return f"{GENERATOR} {name}"


def _asset(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    """The name of an inline script or style in a Content-Security-Policy: the SHA-256 of its text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
