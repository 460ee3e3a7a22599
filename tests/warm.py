"""Processes that begin with the package imported: forks of a server that has imported it and done nothing else.

An import of torch, diffusers and the package takes 6 s of a core, and the tests start a hundred processes. A fork is a
process as any other: it can be killed, has its own environment, folder and output, and ends through the interpreter's
own exit. Tests of the start itself (imports, launchers, devices) use `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PLACE = "EQM_VIDEO_WARM_SOCKET"  # the environment's variable with the place of the server that runs
PRELOADED = (
    *("tiny_run", "torch.distributed.fsdp", "torch.utils.data", "diffusers.pipelines.pipeline_utils"),
    *("eqm_video.sampling.pipeline", "eqm_video.sampling.launch", "eqm_video.sampling.loading"),
    *("eqm_video.training.launch", "eqm_video.training.run", "eqm_video.training.evaluating"),
    *("eqm_video.data.datasets", "eqm_video.output.media", "eqm_video.evaluation.measure"),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.dates", "einops._torch_specific"),
)


class Process:
    """`python WORDS` as a fork of the server, with what the tests use of `subprocess.Popen`.

    words: a script and its arguments, or "-m", a module and its arguments. environment: the whole of it; this
    process's own without one. ranks: the number of processes, more than one as torchrun starts them: the process is
    then their parent, and ends all of them when one fails.
    """

    def __init__(self, *words: object, environment: Mapping[str, str] | None = None, ranks: int = 1) -> None:
        out, err, self._status = os.pipe(), os.pipe(), os.pipe()
        request = {
            "words": [str(word) for word in words],
            "environment": dict(os.environ if environment is None else environment),
            "ranks": ranks,
        }
        self.args, self.returncode = list(words), None
        self.pid = _fork(request, [out[1], err[1], self._status[1]])
        for number in (out[1], err[1], self._status[1]):
            os.close(number)
        self.stdout, self.stderr = os.fdopen(out[0]), os.fdopen(err[0])
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status (negative: the signal), None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._status[0]], [], [], 0)[0]:
                (self.returncode,) = struct.unpack("i", os.read(self._status[0], 4))
                os.close(self._status[0])
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """Wait for its end; TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """All that it prints, (stdout, stderr), until it ends."""
        texts = ["", ""]

        def read(index: int) -> None:
            texts[index] = (self.stdout, self.stderr)[index].read()

        threads = [threading.Thread(target=read, args=(index,), daemon=True) for index in (0, 1)]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(10)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(*words: object, timeout: float = 120, **options: object) -> subprocess.CompletedProcess:
    """Run `python WORDS` to its end; keywords as of `Process`."""
    process = Process(*words, **options)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Server:
    """The process that forks, at the socket `place`: one for all processes of the tests."""

    def __init__(self, place: str) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(place)
        listening.listen()
        theirs, self._alive = os.pipe()  # its end tells the server that the tests are over
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        numbers = (listening.fileno(), theirs)
        command = [sys.executable, str(Path(__file__)), *map(str, numbers)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=numbers)
        listening.close()
        os.close(theirs)
        atexit.register(self.stop)

    def stop(self) -> None:
        os.close(self._alive)
        self.process.wait(10)


def start() -> None:
    """Start the server, for this process and those that it starts."""
    place = os.path.join(tempfile.mkdtemp(prefix="warm-"), "socket")
    Server(place)
    os.environ[PLACE] = place


@cache
def _connection() -> socket.socket:
    """This process's way to the server, which is started if nobody has."""
    if PLACE not in os.environ:
        start()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[PLACE])
    return connection


def _fork(request: dict, files: list[int]) -> int:
    """The process id of a new fork, whose stdout, stderr and place for the exit status are `files`."""
    text = json.dumps(request).encode()
    socket.send_fds(_connection(), [struct.pack("i", len(text))], files)
    _connection().sendall(text)
    answer = _connection().recv(4, socket.MSG_WAITALL)
    if len(answer) < 4:
        raise RuntimeError("the server of warm processes has ended; its words stand above")
    return struct.unpack("i", answer)[0]


# In the server ------------------------------------------------------------------------------------------------------


def serve(listening: socket.socket, alive: int) -> dict | None:
    """Fork for each request. Returns the request in the fork, and None in the server when the tests are over."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork need not copy the pages of all that was imported
    running: dict[int, int] = {}
    waking = _wake_at_ends()
    asking: list[socket.socket] = []
    while True:
        ready = select.select([listening, alive, waking, *asking], [], [])[0]
        if alive in ready:
            return None
        if waking in ready:
            os.read(waking, 4096)
            _report_ends(running)
        if listening in ready:
            asking.append(listening.accept()[0])
        for connection in asking[:]:
            if connection not in ready:
                continue
            head, files, _, _ = socket.recv_fds(connection, 4, 3, socket.MSG_WAITALL)
            if not head:
                asking.remove(connection)
                connection.close()
                continue
            request = json.loads(connection.recv(struct.unpack("i", head)[0], socket.MSG_WAITALL))
            child = os.fork()
            if child == 0:
                _leave((listening, *asking), (alive, waking, *running.values()), files)
                return request
            running[child] = files[2]
            os.close(files[0])
            os.close(files[1])
            connection.sendall(struct.pack("i", child))


def _leave(sockets: Iterable[socket.socket], places: Iterable[int], files: list[int]) -> None:
    """A fork parts from the server: nothing of it stays open, and stdout and stderr are `files`."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for one in sockets:
        one.close()
    for place in (*places, files[2]):
        os.close(place)
    for number, place in zip((1, 2), files, strict=False):
        os.dup2(place, number)
        os.close(place)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _wake_at_ends() -> int:
    """A descriptor that can be read when a child has ended."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _report_ends(running: dict[int, int]) -> None:
    for child in list(running):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            place = running.pop(child)
            with suppress(BrokenPipeError):  # a test that did not wait for it
                os.write(place, struct.pack("i", os.waitstatus_to_exitcode(status)))
            os.close(place)


def begin(request: dict) -> None:
    """Be the process of a request."""
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    if request["ranks"] > 1 and not launch(request["ranks"]):
        return
    first, *rest = request["words"]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(first).resolve().parent)
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def launch(ranks: int) -> bool:
    """Fork `ranks` processes with torchrun's environment: True in each of them; False in their parent, at their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            counts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ.update({name: str(value) for name, value in counts.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
            return True
        children.append(child)
    failed = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not failed:
            failed = 1
            for other in children:
                os.kill(other, signal.SIGTERM)
    sys.exit(failed)


if __name__ == "__main__":
    at = socket.socket(fileno=int(sys.argv[1]))
    folder = Path(at.getsockname()).parent
    wanted = serve(at, int(sys.argv[2]))
    if wanted is not None:
        begin(wanted)
    else:
        shutil.rmtree(folder)
