"""Signs of life between the processes of a run. A process that hangs, dies or fails is named, and the others end.

Collectives wait for the slowest process, for ever if it hangs. So every process has a thread that reports, through a
small server in process 0, that it lives and what it is doing. A scan of the data may take hours while that thread
beats. A process whose thread is silent was stopped, or its machine is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from eqm_video.system.patience import SILENT, STUCK, patience

LOOK = 1.0  # seconds between two beats
GRACE = 60.0  # seconds that a failed process waits for process 0 to save


class Heartbeat:
    """A `with` block in which this process reports to the others and watches them; a single process does nothing.

    `beat(doing)` reports progress of this process. Outside of `working()` progress may take any time, as the scan of
    the data does. `save()` in process 0 keeps the last whole step and returns a part of a sentence about it.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.save: Callable[[], str] = lambda: "no step was done"
        self._doing, self._steps, self._limited = "starting", 0, False
        self._kept = "nothing more was kept"
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: dist.TCPStore | None = None
        self._silent, self._stuck = patience(SILENT), patience(STUCK)

    def __enter__(self) -> Heartbeat:
        if self.world > 1:
            self._store = self._connect()
            self._tell(0)
            dist.barrier()  # every process has reported once
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._ended.set()
        if self._thread is None:
            return
        if error is not None:
            self.report(str(error) or kind.__name__)
        self._thread.join(LOOK)

    def beat(self, doing: str | None = None) -> None:
        """Report progress of this process; `doing` says what it is working on."""
        self._steps += 1
        self._doing = doing or self._doing

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """A block in which some process must make progress within `STUCK` seconds."""
        self._limited = True
        try:
            yield
        finally:
            self._limited = False

    def report(self, sentence: str) -> str:
        """Tell the other processes that this one failed; returns what process 0 kept, as a part of a sentence."""
        if self._store is None:
            return ""
        with contextlib.suppress(RuntimeError):  # process 0 is gone
            self._store.set("failed", f"process {self.rank} failed: {sentence}")
            if self.rank == 0:
                self.kept(self._kept)
                return ""
        return self._await_kept()

    def kept(self, sentence: str) -> None:
        """Tell the other processes, from process 0, what was kept of the run."""
        self._kept = sentence
        if self._store is not None:
            self._store.set("kept", sentence)

    def _connect(self) -> dist.TCPStore:
        """Connect to a server of its own: other users of torch's server must not wait for this one."""
        host, options = os.environ.get("MASTER_ADDR", "localhost"), {"wait_for_workers": False}
        store = dist.TCPStore(host, 0, is_master=True, **options) if self.rank == 0 else None
        port = [store.port if store is not None else 0]
        broadcast_object_list(port)
        return store if store is not None else dist.TCPStore(host, port[0], is_master=False, **options)

    def _tell(self, beats: int) -> None:
        state = {"beats": beats, "steps": self._steps, "doing": self._doing, "limited": self._limited}
        self._store.set(f"state/{self.rank}", json.dumps(state))

    def _watch(self) -> None:
        """The thread: beat, and check the other processes."""
        beats, lives, steps = 0, _Changes(self.world), _Changes(self.world)
        pause = min(LOOK, self._silent / 8)
        while not self._ended.wait(pause):
            beats += 1
            try:
                self._tell(beats)
                failed = self._store.get("failed").decode() if self._store.check(["failed"]) else None
                grace = 2 * LOOK  # the main thread may fail of the same cause, with a better message
                names = [f"state/{rank}" for rank in range(self.world)]
                states = [json.loads(text) for text in self._store.multi_get(names)]
            except RuntimeError:  # from the store: its server, in process 0, is gone
                failed, states, grace = "process 0 is gone", [], 10 * LOOK  # perhaps because the run is over
            if self._ended.is_set():
                return
            if failed is not None:
                self._end(failed, grace)
            elif (trouble := self._trouble(states, lives, steps)) is not None:
                self._end(trouble, 0)

    def _trouble(self, states: list[dict[str, Any]], lives: _Changes, steps: _Changes) -> str | None:
        """A sentence about processes that are silent or stuck; None if all are well."""
        silent = lives.since([state["beats"] for state in states])
        quiet = [rank for rank, seconds in enumerate(silent) if seconds > self._silent]
        doing = [state["doing"] for state in states]
        if quiet:
            named = ", ".join(f"process {rank} (last at {doing[rank]})" for rank in quiet)
            return f"no sign of life for {self._silent:g} s from {named}: it was stopped, or its machine is gone"
        waited = min(steps.since([state["steps"] for state in states]))
        if waited > self._stuck and all(state["limited"] for state in states):
            places = ", ".join(f"process {rank} at {text}" for rank, text in enumerate(doing))
            return f"no process came further for {waited:.0f} s: {places}"
        return None

    def _end(self, sentence: str, grace: float) -> None:
        """Save the last whole step, print `sentence`, and end this process, whose main thread hangs in a collective.

        The main thread has `grace` seconds to end by itself.
        """
        if self.rank == 0:
            kept = self.save()
            with contextlib.suppress(RuntimeError):
                self.kept(kept)
                time.sleep(min(LOOK, self._silent / 8))  # the others read it
        else:
            kept = self._await_kept()
        if self._ended.wait(grace):
            return
        text = f"\nerror (process {self.rank}): {sentence}; {kept}\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
        os._exit(3)

    def _await_kept(self) -> str:
        end = time.monotonic() + GRACE
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < end:
                if self._store.check(["kept"]):
                    return self._store.get("kept").decode()
                time.sleep(LOOK / 4)
        return "process 0 could not say what it kept"


class _Changes:
    """Tells how long each of several values has stayed the same."""

    def __init__(self, count: int) -> None:
        self.values: list[Any] = [None] * count
        self.times = [time.monotonic()] * count

    def since(self, values: list[Any]) -> list[float]:
        """Seconds since the last change of each value."""
        now = time.monotonic()
        for place, value in enumerate(values):
            if value != self.values[place]:
                self.values[place], self.times[place] = value, now
        return [now - changed for changed in self.times]
