"""A server of real processes: each request is a fork of one that has imported everything, which saves its start.

`python -m faults.server` reads a request as a line of JSON and answers with a line when the forked process has ended.
What runs in it is the real command line. An audit hook counts the file operations inside a folder, and at the n-th one
kills the process or makes the disk full.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
COUNTED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


@dataclass(frozen=True)
class Outcome:
    """The end of a process: exit status (negative: the signal), output, file operations, time."""

    code: int
    out: str
    err: str
    operations: int
    seconds: float
    resident: int  # largest resident memory, bytes

    @property
    def errors(self) -> list[str]:
        """The sentences that begin with `error:`."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def crashed(self) -> bool:
        """True unless it finished, said one sentence, or was killed on purpose."""
        refused = self.code == 2 and len(self.errors) == 1
        return "Traceback" in self.err or not (self.code in (0, -signal.SIGKILL) or refused)


class Server:
    """The process that forks; `python` is the program that it begins as."""

    def __init__(self, python: str = sys.executable) -> None:
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [python, "-m", "faults.server"],
            cwd=TESTS.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._answer(300)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *unused: object) -> None:
        self.process.stdin.close()
        self.process.wait(60)

    def run(self, *arguments: object, timeout: float = 600, **options: object) -> Outcome:
        """Run `python -m eqm_video ARGUMENTS`, or with `call="module:function"` that function.

        watch: the folder whose file operations are counted. at: the operation that is the fault, from 0. fault: "kill"
        or "full" (from there on nothing can be written below the folder). largest: bytes that a file may have.
        """
        request = {"arguments": [str(one) for one in arguments], "timeout": timeout, **options}
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        return Outcome(**self._answer(timeout + 60))

    def _answer(self, timeout: float) -> dict:
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError("the fork server does not answer")
        return json.loads(self.process.stdout.readline())


def serve() -> None:
    """Import everything, then fork for each request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_everything()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def import_everything() -> None:
    """Whatever a run or a sampling imports on its way."""
    import importlib

    import torch

    torch.set_num_threads(1)
    names = (
        "training.run",
        "sampling.pipeline",
        "output.media",
        "sampling.loading",
        "data.datasets",
        "commands.convert",
    )
    names = (*names, "training.launch", "sampling.launch")
    for name in names:
        importlib.import_module(f"eqm_video.{name}")
    for name in ("tiny_run", "faults.inside", "av", "torch.optim", "torch._dynamo", "torchdiffeq"):
        importlib.import_module(name)


def answer(request: dict) -> dict:
    """Fork, let the child do what is asked, and say how it ended."""
    folder = Path(request.get("scratch") or os.environ.get("TMPDIR", "/tmp")) / f"faults-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: folder / name for name in ("out", "err", "count")}
    for path in names.values():
        path.unlink(missing_ok=True)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        work(request, names)
    code, resident = wait(child, request["timeout"])
    texts = {name: path.read_text(errors="backslashreplace") if path.exists() else "" for name, path in names.items()}
    return {
        "code": code,
        "out": texts["out"][-20_000:],
        "err": texts["err"][-20_000:],
        "operations": int(texts["count"] or 0),
        "seconds": time.monotonic() - start,
        "resident": resident,
    }


def wait(child: int, timeout: float) -> tuple[int, int]:
    """Exit status and memory of a child; past its time it gets SIGABRT, with its whole group, and says where it was."""
    deadline = time.monotonic() + timeout
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGABRT)
            deadline = float("inf")
        time.sleep(0.01)


def work(request: dict, names: dict[str, Path]) -> None:
    """The child: never returns."""
    import faulthandler

    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(names[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(request.get("environment", {}))
    faulthandler.enable(sys.__stderr__)
    operations = watch(request) if "watch" in request else [0]
    if largest := request.get("largest"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    code = 1
    try:
        code = perform(request)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    request["over"] = True
    sys.stdout.flush()
    sys.stderr.flush()
    names["count"].write_text(str(operations[0]))
    atexit._run_exitfuncs()
    os._exit(code)


def perform(request: dict) -> int:
    """The command line, or a function of this package."""
    if call := request.get("call"):
        from faults import inside

        return getattr(inside, call)(*request["arguments"]) or 0
    from eqm_video.cli import main

    return main(request["arguments"])


def watch(request: dict) -> list[int]:
    """Count file operations below a folder, in this process alone, and commit the fault at the one that was chosen."""
    folder, at, fault = os.path.abspath(request["watch"]), request.get("at"), request.get("fault")
    process, operations = os.getpid(), [0]

    def hook(event: str, arguments: tuple) -> None:
        if event not in COUNTED or os.getpid() != process or request.get("over"):
            return
        path = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.abspath(os.fsdecode(path)).startswith(folder):
            return
        here, operations[0] = operations[0], operations[0] + 1
        if at is None or here < at:
            return
        if fault == "kill":
            os.kill(process, signal.SIGKILL)
        writes = event in ("os.mkdir", "os.link", "os.symlink") or (event == "open" and arguments[2] & WRITES)
        if fault == "full" and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    sys.addaudithook(hook)
    return operations


if __name__ == "__main__":
    serve()
