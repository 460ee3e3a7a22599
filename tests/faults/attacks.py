"""The attacks. Each gives one row of the table: how often it was tried, and how often the program fell short."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_run import read_metrics

from faults import made
from faults.server import TESTS, Outcome, Server

ROOT = TESTS.parent
FIXTURE = TESTS / "fixtures" / "official_eqm" / "official_state_dict.safetensors"


@dataclass
class Row:
    """One attack: crashes are ends in any way but success or one sentence; lost steps are beyond what is promised."""

    attack: str
    tries: int = 0
    crashes: int = 0
    lost_steps: int = 0
    wrong_values: int = 0
    seconds: float = 0.0
    note: str = ""
    details: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return not (self.crashes or self.lost_steps or self.wrong_values)

    def crash(self, what: str) -> None:
        self.crashes += 1
        self.details.append(what)

    def wrong(self, what: str) -> None:
        self.wrong_values += 1
        self.details.append(what)


def places(operations: int, count: int) -> list[int]:
    """`count` of the file operations of a run, evenly from the first to the last one."""
    return sorted({round(index * (operations - 1) / max(1, count - 1)) for index in range(count)})


# ------------------------------------------------------------------------------------------------- training


class Training:
    """A tiny run, and what it leaves where nothing disturbs it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.recipe = made.write_recipe(folder / "made")
        whole = folder / "whole"
        outcome = self.run(whole, watch=whole)
        assert outcome.code == 0, outcome.err
        self.operations, self.expected = outcome.operations, made.digest(whole)
        assert made.leftovers(whole) == []

    def run(self, run: Path, *more: str, **options: object) -> Outcome:
        return self.server.run("train", *self.recipe, f"run.dir={run}", *more, **options)

    def disturbed(self, row: Row, what: str, allowed: int, **fault: object) -> None:
        """One run with a fault, resumed to its end, compared with the undisturbed one."""
        run = self.folder / "disturbed"
        shutil.rmtree(run, ignore_errors=True)
        row.tries += 1
        outcome = self.run(run, watch=run, **fault)
        if outcome.crashed:
            row.crash(f"{what}: status {outcome.code}: {outcome.err[-600:]}")
        row.lost_steps += max(0, lost(run) - allowed)
        again = self.run(run, "--resume")
        if again.code != 0:
            row.crash(f"{what}, resumed: status {again.code}: {again.err[-600:]}")
            return
        differs = [name for name, value in self.expected.items() if made.digest(run).get(name) != value]
        if differs or made.leftovers(run):
            row.wrong(f"{what}: {', '.join(differs or made.leftovers(run))}")


def lost(run: Path) -> int:
    """Steps that were made and are in no checkpoint."""
    done = read_metrics(run)[-1]["step"] if (run / "metrics.jsonl").is_file() and read_metrics(run) else 0
    kept = [int(path.name[5:]) for path in run.glob("checkpoints/step_*") if (path / "checkpoint.json").is_file()]
    return max(0, done - max(kept, default=0))


def kills(training: Training, count: int) -> Row:
    """SIGKILL at file operations inside run.dir: no more is lost than what came after the last checkpoint."""
    row = Row("kill -9 at a file operation of training")
    for at in places(training.operations, count):
        training.disturbed(row, f"killed at operation {at}", made.SAVE_EVERY, at=at, fault="kill")
    row.note = f"{training.operations} operations in a run; each run resumed and compared bit by bit"
    return row


def full_disk(training: Training, count: int) -> Row:
    """No file can be made from some operation on: the run ends in one sentence, or goes on without a side file."""
    row = Row("disk full at a write of training")
    for at in places(training.operations, count):
        environment = {"EQM_VIDEO_PATIENCE": "0.02"}  # the wait for room, which does not come
        fault = {"at": at, "fault": "full", "environment": environment}
        training.disturbed(row, f"full from operation {at} on", made.SAVE_EVERY, **fault)
    return row


def small_files(training: Training, sizes: Sequence[int]) -> Row:
    """A file may not grow beyond a size, in the middle of which a write therefore ends."""
    row = Row("disk full inside a file of training")
    for size in sizes:
        training.disturbed(
            row, f"files of {size} bytes", made.STEPS, largest=size, environment={"EQM_VIDEO_PATIENCE": "0.02"}
        )
    return row


def sampling(training: Training, count: int, full: bool = False) -> Row:
    """Kills, or full disks, at file operations of sample_video.py; the same command then ends with the same files."""
    row = Row(f"{'disk full' if full else 'kill -9'} at a file operation of sampling")
    model, server, folder = training.folder / "whole" / "export", training.server, training.folder / "samples"
    words = ["sample", model, "--num-samples", 5, "--batch-size", 2, "--steps", 2, "--format", "gif,mp4,png"]

    def sample(**options: object) -> Outcome:
        return server.run(*words, "--out", folder, **options)

    shutil.rmtree(folder, ignore_errors=True)
    whole = sample(watch=folder)
    assert whole.code == 0, whole.err
    expected = made.sampled(folder)
    for at in places(whole.operations, count):
        shutil.rmtree(folder)
        row.tries += 1
        outcome = sample(watch=folder, at=at, fault="full" if full else "kill")
        if outcome.crashed:
            row.crash(f"operation {at}: status {outcome.code}: {outcome.err[-600:]}")
        again = sample()
        if again.code != 0:
            row.crash(f"after operation {at}: status {again.code}: {again.err[-600:]}")
        elif made.sampled(folder) != expected or made.leftovers(folder):
            row.wrong(f"operation {at}: {made.leftovers(folder) or 'other files'}")
    row.note = f"{whole.operations} operations in a sampling of 5 clips"
    return row


# ---------------------------------------------------------------------------------------------------- files


def fuzz(server: Server, folder: Path, kind: str, sources: list[Path], count: int, seed: int = 0) -> Row:
    """Damaged videos or images: none ends the process, each is named in a sentence, an accepted one is what it is."""
    row = Row(f"damaged {kind}")
    shutil.rmtree(folder, ignore_errors=True)
    row.tries = made.write_mutations(sources, folder / "data", count, seed)
    answer = folder / "answer.json"
    outcome = server.run(kind, folder / "data", answer, call="scan")
    if not answer.is_file():
        row.crash(f"the scan ended with status {outcome.code}: {outcome.err[-2000:]}")
        return row
    result = json.loads(answer.read_text())
    for name, reason in {**result["refused"], **result["later"]}.items():
        if not reason.strip() or "\n" in reason or "Traceback" in reason:
            row.crash(f"{name}: {reason[:300]}")
    for name, trace in result["crashes"].items():
        row.crash(f"{name}: {trace}")
    for name, difference in result["differences"].items():
        if difference > 8:
            row.wrong(f"{name}: frames differ from PyAV's by {difference}")
    row.note = what_came_of_it(row, result)
    return row


def what_came_of_it(row: Row, result: dict) -> str:
    """The damaged files by what came of them, which sum up to the tries; the whole file beside them must be read."""
    later = result.get("later", {})
    read = set(result["accepted"]) - set(later) - set(result["crashes"])
    whole = {name for name in read if name.startswith("whole")}
    if not whole:
        row.wrong("the whole file beside the damaged ones is not read")
    note = f"{len(read - whole)} read, {len(result['refused']) + len(later)} refused"
    return f"{note} ({len(later)} of them when read)" if later else note


def videos(server: Server, folder: Path, count: int) -> Row:
    sources = made.write_clips(folder / "sources") + made.real_clips()
    return fuzz(server, folder / "videos", "videos", sources, count)


def images(server: Server, folder: Path, count: int) -> Row:
    return fuzz(server, folder / "images", "images", made.write_pictures(folder / "pictures"), count)


def damaged_files(server: Server, folder: Path, kind: str, sources: list[Path], count: int) -> Row:
    """Damaged recipes, archives or weights: read, or refused in one sentence."""
    row = Row(f"damaged {kind}")
    shutil.rmtree(folder, ignore_errors=True)
    row.tries = made.write_mutations(sources, folder / "data", count, seed=3)
    outcome = server.run(kind, folder / "data", folder / "answer.json", call="files")
    if not (folder / "answer.json").is_file():
        row.crash(f"status {outcome.code}: {outcome.err[-2000:]}")
        return row
    result = json.loads((folder / "answer.json").read_text())
    for name, trace in result["crashes"].items():
        row.crash(f"{name}: {trace}")
    for name, reason in result["refused"].items():
        if "\n" in reason or len(reason) > 1500:
            row.crash(f"{name}: {reason[:1500]}")
    row.note = f"{what_came_of_it(row, result)}; at most {outcome.resident >> 20} MiB"
    return row


def recipes(server: Server, folder: Path, count: int) -> Row:
    return damaged_files(server, folder / "recipes", "recipes", sorted((ROOT / "configs").glob("*.yaml")), count)


def archives(server: Server, folder: Path, count: int) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    return damaged_files(server, folder / "archives", "archives", [made.write_cifar(folder / "cifar.tar.gz")], count)


def weights(server: Server, folder: Path, count: int) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"ema": load_file(FIXTURE)}, folder / "weights.pt")
    return damaged_files(server, folder / "weights", "weights", [FIXTURE, folder / "weights.pt"], count)


def checkpoints(training: Training, count: int) -> Row:
    """Damaged checkpoints: noticed by their hashes, and one sentence."""
    row = Row("damaged checkpoints")
    newest = max((training.folder / "whole" / "checkpoints").glob("step_*"))
    scratch, answer = training.folder / "damaged", training.folder / "damaged.json"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    outcome = training.server.run(newest, scratch, count, 0, answer, call="checkpoints")
    if not answer.is_file():
        row.tries, _ = count, row.crash(f"status {outcome.code}: {outcome.err[-2000:]}")
        return row
    result = json.loads(answer.read_text())
    row.tries = result["tries"]
    for what in result["crashes"]:
        row.crash(what)
    for what in result["unnoticed"]:
        row.wrong(f"damage of {what} is not noticed")
    return row


# ------------------------------------------------------------------------------------------ several processes


def ranks(folder: Path, number: int, patience: str = "0.05") -> Row:
    """One of two processes is killed, or stopped: the other does not wait for ever, and the run resumes."""
    row = Row(f"{signal.Signals(number).name} to one of two processes", tries=1)
    recipe = [*made.write_recipe(folder / "made"), f"run.dir={folder / 'run'}", "train.steps=400", "preview.every=0"]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "train_video.py",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "EQM_VIDEO_PATIENCE": patience}
    process = subprocess.Popen(
        [*launcher, *recipe], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not list(folder.glob("run/checkpoints/step_*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), number)
    start = time.monotonic()
    try:
        _, err = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.kill()
        row.crash("the other process still waits after 180 s")
        return row
    finally:
        for child in children:
            subprocess.run(["kill", "-9", child], stderr=subprocess.DEVNULL, check=False)
    row.note = f"all ended after {time.monotonic() - start:.0f} s"
    row.lost_steps = max(0, lost(folder / "run") - made.SAVE_EVERY)
    if number == signal.SIGSTOP and "error" not in err:
        row.crash(f"no sentence: {err[-600:]}")
    return row


# ---------------------------------------------------------------------------------------------------- memory


def shared_memory(folder: Path) -> Row:
    """A /dev/shm of 64 MB, the default of Docker: batches that do not fit into it are refused at the start."""
    row = Row("64 MB of /dev/shm", tries=1)
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        return Row("64 MB of /dev/shm", note="not tried: this process may not mount (unshare -m)")
    recipe = [*made.write_recipe(folder / "made"), f"run.dir={folder / 'run'}", "data.workers=2", "data.size=256"]
    words = [sys.executable, "train_video.py", *recipe, "train.batch_size=64", "frames=10", "data.frame_interval=1"]
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", mount, "sh", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        row.crash("still waiting after 300 s")
        return row
    if done.returncode != 2 or "/dev/shm" not in done.stderr:
        row.crash(f"status {done.returncode}: {done.stderr[-600:]}")
    row.note = "refused at the start, with the sizes"
    return row


def memory(server: Server, folder: Path, steps: int) -> Row:
    """Memory and open files over many steps, from a tenth of the run on."""
    row = Row(f"memory over {steps:,} steps", tries=1)
    outcome = server.run(folder / "long", steps, call="train_long", timeout=6 * 3600)
    if outcome.code != 0:
        row.crash(f"status {outcome.code}: {outcome.err[-600:]}")
        return row
    seen = json.loads(outcome.out.strip().splitlines()[-1])
    (_, first, files), (_, last, more) = seen[0], seen[-1]
    row.note = (
        f"{first / 2**20:.1f} MiB after a tenth, {last / 2**20:.1f} MiB at the end, {files} and {more} open files"
    )
    if last - first > 16 * 2**20 or more > files + 4:
        row.wrong(f"grows: {seen}")
    return row
