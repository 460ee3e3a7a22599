"""The command `page`: a model on a web page of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from eqm_video import options
from eqm_video.errors import UserError
from eqm_video.options import option
from eqm_video.page.gate import hosts_of, is_loopback
from eqm_video.page.served import Served
from eqm_video.page.shelf import Shelf
from eqm_video.sampling.option_groups import Modelled, Opened
from eqm_video.studies.request import open_model


@dataclass(frozen=True, kw_only=True)
class PageOptions(Modelled, Opened):
    """Show a model on a web page: generate, continue your own frames, compose, long videos, scores.

    The page is for this machine alone, unless --host says otherwise. Everybody on it shares the model: calls are
    answered one after the other. Needs gradio: pip install "gradio>=6.31,<7".
    """

    host: str = option("127.0.0.1", metavar="ADDRESS", help="0.0.0.0 lets other machines in")
    port: int = option(7860, least=1, most=65535, metavar="N", help="port of the page")

    def __post_init__(self) -> None:
        options.check(self)


def main(words: Sequence[str]) -> int:
    """Open the model and serve the page until it is interrupted. UserError for a user's mistake."""
    chosen = options.parse(PageOptions, words, prog="eqm-video page")
    if find_spec("gradio") is None:
        raise UserError('the page needs gradio: type pip install "gradio>=6.31,<7"')
    with contextlib.closing(listen(chosen.host, chosen.port)) as listener:
        served = Served(open_model(chosen))
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it on import
        from eqm_video.page.app import Page, make_app

        with left_by_exception(), Shelf() as shelf:
            app = make_app(Page(served, shelf, Path(chosen.model).name), hosts_of(chosen.host))
            print(f"open {address(chosen.host, chosen.port)} in a browser; Ctrl+C ends the page", flush=True)
            if not is_loopback(chosen.host):
                print("note: everybody who reaches this machine can use the page, without a password", flush=True)
            serve(app, listener)
    return 0


@contextlib.contextmanager
def left_by_exception() -> Iterator[None]:
    """A block that SIGTERM leaves by SystemExit, so that the files of visitors are deleted as after Ctrl+C.

    The server ends first: uvicorn raises the signal once more when it is done. For the main thread.
    """

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; UserError where it is taken, or not one of this machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: the page cannot listen there ({error.strerror}); give another --port"
        ) from error


def address(host: str, port: int) -> str:
    """The address to open in a browser."""
    named = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{named}:{port}"


def serve(app: object, listener: socket.socket) -> None:
    """Serve an ASGI application on a listening socket until the process is interrupted."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])
