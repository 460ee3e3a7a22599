"""`make faults`: every attack, and the table of what came of it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from faults import attacks
from faults.attacks import Row, Training
from faults.server import Server

# Tries in the long run, where nothing else is asked for.
COUNTS = {"kills": 50, "full": 50, "sampling": 20, "videos": 500, "images": 500, "checkpoints": 500, "recipes": 2000}
COUNTS |= {"archives": 500, "weights": 500, "memory": 20_000}


def main() -> int:
    """Run the attacks; returns 1 where one was not held."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the tries, such as 0.1 for a tenth")
    parser.add_argument("--only", nargs="+", metavar="ATTACK", help="kills, full, sampling, ranks, shm, videos, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"), metavar="DIR")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        rows = run(server, Path(folder), options)
    (options.out / "faults.json").write_text(json.dumps(record(rows, options), indent=1) + "\n")
    (options.out / "faults.md").write_text(table(rows) + "\n")
    print(table(rows))
    for row in rows:
        for detail in row.details[:5]:
            print(f"\n{row.attack}: {detail}", file=sys.stderr)
    return 0 if all(row.held for row in rows) else 1


def run(server: Server, folder: Path, options: argparse.Namespace) -> list[Row]:
    """The rows of the table, each said when it is done."""

    def count(name: str) -> int:
        return max(2, round(COUNTS[name] * options.share))

    made: list[Training] = []

    def training() -> Training:
        if not made:
            made.append(Training(server, folder / "training"))
        return made[0]

    plan: dict[str, list[Callable[[], Row]]] = {
        "kills": [lambda: attacks.kills(training(), count("kills"))],
        "full": [
            lambda: attacks.full_disk(training(), count("full")),
            lambda: attacks.small_files(training(), [2**power for power in range(12, 22)]),
        ],
        "sampling": [
            lambda: attacks.sampling(training(), count("sampling")),
            lambda: attacks.sampling(training(), count("sampling"), full=True),
        ],
        "checkpoints": [lambda: attacks.checkpoints(training(), count("checkpoints"))],
        "videos": [lambda: attacks.videos(server, folder / "videos", count("videos"))],
        "images": [lambda: attacks.images(server, folder / "images", count("images"))],
        "recipes": [lambda: attacks.recipes(server, folder / "recipes", count("recipes"))],
        "archives": [lambda: attacks.archives(server, folder / "archives", count("archives"))],
        "weights": [lambda: attacks.weights(server, folder / "weights", count("weights"))],
        "ranks": [
            lambda: attacks.ranks(folder / "killed", signal.SIGKILL),
            lambda: attacks.ranks(folder / "stopped", signal.SIGSTOP),
        ],
        "shm": [lambda: attacks.shared_memory(folder / "shm")],
        "memory": [lambda: attacks.memory(server, folder / "memory", count("memory"))],
    }
    rows = []
    for name, steps in plan.items():
        for attack in steps if not options.only or name in options.only else ():
            start = time.monotonic()
            rows.append(attack())
            rows[-1].seconds = round(time.monotonic() - start, 1)
            print(f"{'held' if rows[-1].held else 'NOT HELD'}: {line(rows[-1])}", file=sys.stderr, flush=True)
    return rows


def line(row: Row) -> str:
    numbers = f"{row.tries} | {row.crashes} | {row.lost_steps} | {row.wrong_values}"
    return f"| {row.attack} | {numbers} | {row.note} |"


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    head = "| attack | tries | crashes | lost steps | wrong values | note |\n|---|---|---|---|---|---|"
    return "\n".join([head, *map(line, rows)])


def record(rows: list[Row], options: argparse.Namespace) -> dict:
    """The rows with the machine that they belong to."""
    from eqm_video.system.machine import processor, versions

    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform(), **versions()}
    load = os.getloadavg()[0]
    return {"machine": machine, "load": load, "share": options.share, "attacks": [asdict(row) for row in rows]}


if __name__ == "__main__":
    sys.exit(main())
