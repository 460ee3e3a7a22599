"""Inspection of files in child processes, so that a file that crashes or blocks a decoder is named and passed over.

A child is a plain process (`looks.serve`), started by its command line. That works from scripts, notebooks and
`python -c`, under every launcher and on every system, and copies nothing of the parent. An idle child is kept for a
while for the next set of files, so that many small sets need only a single start.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from eqm_video.data.looks import READY, request
from eqm_video.errors import UserError
from eqm_video.names import shown
from eqm_video.system import waits

SECONDS = 60.0  # time limit of a file, and one second more for every
BYTES = 10_000_000  # bytes of its size
PATIENCE = 10.0  # seconds after which a slow file is announced
GRACE = 5.0  # seconds that a child may take to end, before it is abandoned: its disk may not answer
START = 300.0  # seconds that a child may take to start
KEPT = 30.0  # seconds that an idle child is kept for the next set
RAMP = 0.3  # seconds until a further child is started: small sets are done by then
MOST = min(8, 2 * (os.cpu_count() or 1))  # children at once: more than processors, since they wait for disks
TICK = 0.1  # seconds between two checks of the time limits
AHEAD = {"video": 1, "image": 16, "image header": 64}  # files in a child's queue behind its current file
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from eqm_video.data.looks import serve; serve()"


@dataclass(frozen=True)
class Answer:
    """The result of inspecting a file: the values of its info, or the reason why it cannot be read."""

    values: list[Any] | None
    reason: str = ""
    costly: bool = False  # the file ended a child, so that the reason is worth keeping


def look_at(root: Path, names: Sequence[str], look: str) -> Iterator[tuple[str, Answer]]:
    """Yield (name, answer) for every name below `root`, in any order; `look` is a key of `looks.LOOKS`.

    A file that ends its child twice, or takes longer than a minute plus a second for every 10 MB, gets that as its
    reason. UserError if no child can be started.
    """
    scan = _Scan(root, names, look)
    try:
        yield from scan.answers()
    finally:
        scan.stop()


class Child:
    """A process that inspects files, one at a time. UserError if it does not start."""

    def __init__(self) -> None:
        words = [sys.executable, "-c", BOOT, json.dumps(sys.path)]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **single}
            )
        except OSError as error:
            raise UserError(f"no process can be started to look at files ({error.strerror})") from error
        if self.process.stdout.readline() != READY:
            raise UserError(f"the process that looks at files does not start: {self.end()}, for the reason above")

    def send(self, look: str, path: Path, seconds: float) -> None:
        """Send a file to the process, with its time limit; answers come in the same order."""
        with suppress(OSError):  # the process has ended: `receive` reports it
            self.process.stdin.write(request(look, path, seconds))
            self.process.stdin.flush()

    def receive(self) -> Answer | None:
        """The answer for the file that was sent first; None if the process has ended."""
        line = self.process.stdout.readline()
        return Answer(*json.loads(line)) if line.endswith(b"\n") else None

    def end(self) -> str:
        """End the process, unless it has ended by itself, and return the way it ended, such as "exit status 1"."""
        try:
            self.process.wait(TICK)  # the pipes of a crashing process close a moment before its end
        except subprocess.TimeoutExpired:
            self.process.kill()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                return "it does not end"
        code = self.process.returncode
        named = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return f"killed by {named}" if code < 0 else f"exit status {code}"


class _Idle:
    """The idle child that is kept for the next set. A process that is forked from this one starts without it."""

    def __init__(self) -> None:
        self._lock, self._child, self._timer = threading.Lock(), None, None

    def take(self) -> Child:
        """The idle child, or a new one."""
        with self._lock:
            child, self._child = self._child, None
        return child if child is not None and child.process.poll() is None else Child()

    def keep(self, child: Child) -> None:
        """Keep an idle child, or end it if another is kept already."""
        with self._lock:
            if self._child is None:
                self._child, surplus = child, None
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = threading.Timer(KEPT, self.close)
                self._timer.daemon = True
                self._timer.start()
            else:
                surplus = child
        if surplus is not None:
            surplus.process.kill()
            surplus.end()

    def close(self) -> None:
        """End the idle child."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.process.kill()
            child.end()

    def forget(self) -> None:
        """Forget the child, after a fork: it belongs to the parent."""
        if self._child is not None:
            self._child.process.returncode = 0  # the parent waits for it
        self.__init__()


_idle = _Idle()
atexit.register(_idle.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.forget)


@dataclass(frozen=True)
class _InHand:
    """The file that a child is inspecting: its name, its time limit, and the time it began."""

    name: str
    seconds: float  # time limit
    since: float

    def too_late(self) -> Answer:
        """The answer for a file that exceeds its time limit."""
        return Answer(None, f"took longer than {self.seconds:.0f} s to look at", costly=True)


class _Worker(threading.Thread):
    """A thread that feeds files to a child, and to a new child after each crash; the child has a queue of files."""

    def __init__(self, scan: _Scan) -> None:
        super().__init__(daemon=True)
        self.scan, self.child = scan, None
        self.sent: deque[tuple[str, float]] = deque()  # files without an answer, and their time limits
        self.current: _InHand | None = None  # always replaced as a whole: another thread reads it
        self.late: _InHand | None = None  # the file that exceeded its limit and whose child was ended
        self.announced: _InHand | None = None
        self.deaths, self.left_behind = 0, False

    def run(self) -> None:
        """Work until no file is left, or the scan stops."""
        try:
            while self._sent_some() and not self.scan.stopped:
                answer = self._receive()
                if self.left_behind:
                    return
                if answer is not None:
                    name, _ = self.sent.popleft()
                    self.deaths = 0
                    self._turn()
                    self.scan.answered.put((name, answer))
        except UserError as error:
            self.scan.answered.put((None, error))
        if self.child is not None and not self.sent:
            _idle.keep(self.child)

    def _turn(self) -> None:
        """Note the file that the child inspects from now on."""
        self.current = _InHand(*self.sent[0], time.monotonic()) if self.sent else None

    def _sent_some(self) -> bool:
        """Fill the child's queue, starting a child if needed. Returns whether any file is without an answer."""
        fresh, idle = self.child is None, not self.sent
        while len(self.sent) <= AHEAD[self.scan.look] and (name := self.scan.next_name()) is not None:
            self.sent.append((name, time_for(self.scan.root / name)))
            if not fresh:
                self._send(*self.sent[-1])
        if fresh and self.sent:
            self._turn()
            self.child = _idle.take()
            for entry in self.sent:
                self._send(*entry)
        if fresh or idle:
            self._turn()
        return bool(self.sent)

    def _send(self, name: str, seconds: float) -> None:
        self.child.send(self.scan.look, self.scan.root / name, seconds)

    def _receive(self) -> Answer | None:
        """The answer for the current file; None if its child ended and it gets a second chance with a new child.

        A child may have ended for a reason other than the file.
        """
        answer = self.child.receive()
        if answer is not None:
            return answer
        died, self.child = self.child.end(), None
        if self.late is self.current:
            return self.late.too_late()
        self.deaths += 1
        return Answer(None, f"ends the decoder: {died}", costly=True) if self.deaths == 2 else None

    def watch(self) -> bool:
        """Announce a slow file, and end the child of a file beyond its limit. True if the child does not end by that.

        UserError if no child starts.
        """
        now, child = self.current, self.child
        waited = 0.0 if now is None else time.monotonic() - now.since
        if waited < PATIENCE:
            return False
        if child is None:
            if waited > START:
                raise UserError(f"the process that looks at files did not start within {START:.0f} s: is a disk away?")
            return False
        if self.announced is not now:
            self.announced = now
            waits.say(f"{shown(now.name)} takes long to look at; it is given {now.seconds:.0f} s", sys.stderr)
        if waited > now.seconds and self.late is not now:
            self.late = now
            child.process.kill()
        self.left_behind = self.late is now and waited > now.seconds + GRACE
        return self.left_behind


class _Scan:
    """A set of files and the workers that share it."""

    def __init__(self, root: Path, names: Sequence[str], look: str) -> None:
        self.root, self.look, self.stopped, self.handed_out = root, look, False, False
        self.count, self._names, self._lock = len(names), iter(names), threading.Lock()
        self.answered: queue.SimpleQueue = queue.SimpleQueue()
        self.workers: list[_Worker] = []

    def next_name(self) -> str | None:
        """The next file; None after the last."""
        with self._lock:
            name = None if self.stopped else next(self._names, None)
            self.handed_out = name is None
            return name

    def answers(self) -> Iterator[tuple[str, Answer]]:
        """Yield names and answers in the order in which they arrive."""
        count, started, watched = 0, time.monotonic(), 0.0
        while count < self.count:
            now = time.monotonic()
            self.workers = [worker for worker in self.workers if worker.is_alive()]
            if not self.handed_out and len(self.workers) < min(MOST, 1 + int((now - started) / RAMP)):
                self.workers.append(_Worker(self))
                self.workers[-1].start()
            elif not self.workers and self.answered.empty():
                raise RuntimeError("the threads that look at files ended before all were looked at")
            if now - watched > TICK:
                watched = now
                for worker in [worker for worker in self.workers if worker.watch()]:
                    count += 1
                    yield self._left_behind(worker)
            try:
                name, answer = self.answered.get(timeout=TICK)
            except queue.Empty:
                continue
            if name is None:
                raise answer
            count += 1
            yield name, answer

    def _left_behind(self, worker: _Worker) -> tuple[str, Answer]:
        """Give up the file of a child that does not end; the other files of its queue go to other workers."""
        self.workers.remove(worker)
        others = [name for name, _ in worker.sent if name != worker.late.name]
        with self._lock:
            self._names, self.handed_out = chain(others, self._names), False
        return worker.late.name, worker.late.too_late()

    def stop(self) -> None:
        """Stop the workers: none takes another file, and children that still have a file are ended."""
        with self._lock:
            self.stopped = True
        for worker in self.workers:
            if worker.sent and (child := worker.child) is not None:
                child.process.kill()
        for worker in self.workers:
            worker.join(GRACE)


def time_for(path: Path) -> float:
    """The time limit of a file in seconds, longer for larger files."""
    try:
        return SECONDS + os.stat(path).st_size / BYTES
    except OSError:  # the file has vanished: its inspection will report it
        return SECONDS
