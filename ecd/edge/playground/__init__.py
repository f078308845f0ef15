"""The playground: one page without outside assets, and the policy that keeps it so.

Owns the page's file; whoever serves it owns the route. The page talks to the gateway it came from only.
"""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files


def page() -> tuple[bytes, str]:
    """The page, UTF-8, and the value of its Content-Security-Policy header.

    The policy names the page's own script and style by their hashes: nothing else runs, whatever a model
    writes, and nothing is loaded from or sent to another place.
    """
    html = files("ecd.edge.playground").joinpath("index.html").read_text("utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of("script", html),
        "style-src": _hash_of("style", html),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html.encode(), "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash_of(element: str, html: str) -> str:
    """CSP's source for the page's one inline element of that name."""
    (content,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
