"""The gate in front of the page: which addresses exist, who may ask, how much they may send.

gradio serves many addresses that this page does not use (files, uploads, proxies, development). Behind the gate they do
not exist. Plain ASGI, without gradio.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = {
    "GET": re.compile(
        r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(static|assets|svelte)/[\w./-]+"
        r"|/gradio_api/(info|startup-events|queue/data|theme\.css|heartbeat/\w+)"
        r"|/files/[A-Za-z0-9_-]{22}\.(gif|mp4|png)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset)|/uploads"),
}
UPLOADS = "/uploads"
MOST_MESSAGE = 2**18  # bytes of a message that is no upload
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
        b"'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Gate:
    """An ASGI application in front of another: it answers 404, 403 or 413 itself, and adds safe headers.

    hosts: the names under which the page may be called; empty: any. A page of another origin may not post.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], hosts: Collection[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page has no websockets: the server closes them
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status = self._refuse(scope, headers)
        if status:
            words = {403: b"not from here", 404: b"no such page", 413: b"too large"}[status]
            head = [(b"content-type", b"text/plain"), (b"content-length", str(len(words)).encode()), *HEADERS]
            await send({"type": "http.response.start", "status": status, "headers": head})
            await send({"type": "http.response.body", "body": words})
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refuse(self, scope: Scope, headers: MutableMapping[bytes, str]) -> int:
        """The status of a refusal; 0 for a request that may pass."""
        host = headers.get(b"host", "")
        if self.hosts and (urlsplit(f"//{host}").hostname or "") not in self.hosts:
            return 403  # another name that was made to lead here
        allowed, path = OPEN.get(scope["method"]), scope["path"]
        if allowed is None or not allowed.fullmatch(path) or ".." in path:
            return 404
        if scope["method"] == "POST":
            origin = headers.get(b"origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return 403
            size = headers.get(b"content-length", "")
            if path != UPLOADS and not (size.isdecimal() and len(size) < 10 and int(size) <= MOST_MESSAGE):
                return 413
        return 0


def hosts_of(host: str) -> set[str]:
    """The names under which a page on `host` may be called: those of this machine for a loopback, else any (empty)."""
    return {"localhost", "127.0.0.1", "::1", host} if is_loopback(host) else set()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
