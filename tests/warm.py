"""Processes that begin with the package imported: forks of a server that has imported it and done nothing else.

An import of torch, diffusers and the package takes 6 s of a core, and the tests start a hundred processes. A fork is a
process as any other: it can be killed, has its own environment, folder and output, and ends through the interpreter's
own exit. `Process` starts one; `python` is a program for all that starts `python` by itself (launchers, kernels, the
workers of the tests). Tests of what an interpreter does at its start, such as imports, use `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import runpy
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
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
        with open(os.devnull) as nothing:
            self.pid = _fork(_connection(), request, [nothing.fileno(), out[1], err[1], self._status[1]])
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
        listening.listen(64)
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
    place = Path(tempfile.mkdtemp(prefix="warm-"), "socket")
    script = place.with_name("python")
    words = [sys.executable, "-IS", str(Path(__file__)), str(place)]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o700)
    Server(str(place))
    os.environ[PLACE] = str(place)


def python() -> str:
    """The path of a program that is started as `python [-u] WORDS` and runs WORDS in a fork of the server.

    The program itself only waits: signals go to the fork, which has its folder, environment, input and output, and
    the program ends as the fork does. The fork ends with it where it is killed.
    """
    _connection()
    return str(Path(os.environ[PLACE]).with_name("python"))


@cache
def _connection() -> socket.socket:
    """This process's way to the server, which is started if nobody has."""
    if PLACE not in os.environ:
        start()
    return _connect(os.environ[PLACE])


def _connect(place: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(place)
    return connection


def _fork(connection: socket.socket, request: dict, files: list[int]) -> int:
    """The process id of a new fork: its stdin, stdout and stderr are `files`; the last one is for its exit status."""
    text = json.dumps({"folder": os.getcwd(), **request}).encode()
    socket.send_fds(connection, [struct.pack("i", len(text))], files)
    connection.sendall(text)
    answer = connection.recv(4, socket.MSG_WAITALL)
    if len(answer) < 4:
        raise RuntimeError("the server of warm processes has ended; its words stand above")
    return struct.unpack("i", answer)[0]


def stand_in(place: str, words: list[str]) -> None:
    """Be `python WORDS`: let the server at `place` fork, and end as the fork ends."""
    while words[0] in ("-u", "-B"):
        words = words[1:]
    status, theirs = os.pipe()
    request = {"words": words, "environment": dict(os.environ), "ranks": 1}
    connection = _connect(place)  # the fork lives as long as this
    fork = _fork(connection, request, [0, 1, 2, theirs])
    os.close(theirs)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: os.kill(fork, number))
    answer = os.read(status, 4)
    if not answer:  # the server has ended, and its forks with it
        sys.exit(1)
    (code,) = struct.unpack("i", answer)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# In the server ------------------------------------------------------------------------------------------------------


def serve(listening: socket.socket, alive: int) -> dict | None:
    """Fork for each request. Returns the request in the fork, and None in the server when the tests are over."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork need not copy the pages of all that was imported
    running: dict[int, tuple[int, socket.socket]] = {}  # where the exit status goes, and who asked
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
            head, files, _, _ = socket.recv_fds(connection, 4, 4, socket.MSG_WAITALL)
            if not head:
                asking.remove(connection)
                _end_all(running, connection)
                connection.close()
                continue
            request = json.loads(connection.recv(struct.unpack("i", head)[0], socket.MSG_WAITALL))
            child = os.fork()
            if child == 0:
                _leave((listening, *asking), (alive, waking, *(place for place, _ in running.values())), files)
                return request
            running[child] = (files[3], connection)
            for number in files[:3]:
                os.close(number)
            connection.sendall(struct.pack("i", child))


def _end_all(running: Mapping[int, tuple[int, socket.socket]], connection: socket.socket) -> None:
    """Whoever asked has ended, and so do its forks."""
    for child, (_, asked) in running.items():
        if asked is connection:
            os.kill(child, signal.SIGKILL)


def _leave(sockets: Iterable[socket.socket], places: Iterable[int], files: list[int]) -> None:
    """A fork parts from the server: nothing of it stays open, and stdin, stdout and stderr are `files`."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for one in sockets:
        one.close()
    for place in (*places, files[3]):
        os.close(place)
    for number, place in enumerate(files[:3]):
        os.dup2(place, number)
        os.close(place)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _wake_at_ends() -> int:
    """A descriptor that can be read when a child has ended."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _report_ends(running: dict[int, tuple[int, socket.socket]]) -> None:
    for child in list(running):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            place, _ = running.pop(child)
            with suppress(BrokenPipeError):  # a test that did not wait for it
                os.write(place, struct.pack("i", os.waitstatus_to_exitcode(status)))
            os.close(place)


def begin(request: dict) -> None:
    """Be the process of a request."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[1:1] = more
    random.seed()
    if request["ranks"] > 1 and not launch(request["ranks"]):
        return
    first, *rest = request["words"]
    if first == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.path[0], sys.argv = os.getcwd(), rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(first).resolve().parent), [first, *rest]
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


def main() -> None:
    """`warm.py SOCKET PIPE`, two open files, is the server; `warm.py PLACE WORDS` stands in for `python WORDS`."""
    first, *rest = sys.argv[1:]
    if not first.isdecimal():
        return stand_in(first, rest)
    listening = socket.socket(fileno=int(first))
    folder = Path(listening.getsockname()).parent
    request = serve(listening, int(rest[0]))
    if request is None:
        return shutil.rmtree(folder)
    return begin(request)


if __name__ == "__main__":
    main()
