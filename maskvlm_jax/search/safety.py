"""Who may ask the server what: pages of this server alone, by the names it is known by.

A page of any other site runs in the same browser. It can send requests to this address, and by DNS rebinding even under
a name of its own, so that the browser takes the answers for its own: the Host header tells that name.
"""

import base64
import hashlib
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OWN = ("", "same-origin", "none")  # Sec-Fetch-Site: no browser, this page, or the user's own doing


def content_policy(page: str) -> str:
    """A Content-Security-Policy for the page: its own inline script and style, by their hashes, and nothing else."""
    inline = {tag: re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("script", "style")}
    allowed = {tag: " ".join(f"'sha256-{_digest(text)}'" for text in texts) for tag, texts in inline.items()}
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def hostname(netloc: str) -> str:
    """The name in "name:port", without brackets; "" where that is none."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    """ "name:port" of an origin; "" where that is none, such as "null"."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is reached from this machine alone."""
    return host in LOOPBACK or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Refuses foreign names and foreign pages, and adds to every answer what keeps others from using it.

    The port of a Host header is not looked at: it is another where the server is reached through a tunnel, and a page
    that forges names cannot forge them without a name of its own.

    Args:
        host: that the server listens on. Of every address (0.0.0.0, ::) any numeric address is a name of it, as no
            page can forge those, and so is the machine's own name.
    """

    def __init__(self, app: ASGIApp, *, host: str, content_policy: str):
        everywhere = _is_address(host) and ipaddress.ip_address(host).is_unspecified
        self._names = {*LOOPBACK, host.lower()} | ({socket.gethostname().lower()} if everywhere else set())
        self._any_address = everywhere
        self._app = app
        self._headers = {
            "Content-Security-Policy": content_policy,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refusal:
            return await JSONResponse({"error": refusal}, 403)(scope, receive, send_guarded)
        return await self._app(scope, receive, send_guarded)

    def _refusal(self, method: str, path: str, headers: Headers) -> str:
        """Why a request is refused; "" = it is not."""
        host = headers.get("host", "")
        if not self._is_own(hostname(host)):
            return f"this server is not known by the name {host[:100]!r}"
        origin = headers.get("origin")
        if method not in ("GET", "HEAD") and origin is not None and _netloc(origin) != host.lower():
            return "only this server's own page may ask it"
        # A link from elsewhere may lead to the page; nothing else is for others.
        if headers.get("sec-fetch-site", "") not in _OWN and (method not in ("GET", "HEAD") or path != "/"):
            return "only this server's own page may ask it"
        return ""

    def _is_own(self, name: str) -> bool:
        return name in self._names or (self._any_address and _is_address(name))
