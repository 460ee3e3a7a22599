"""Runs of 1, 2 and 4 processes that hold parts of the weights (FSDP), for test_sharding.py: FOLDER RECIPE ...

The processes are forked from this one, which has imported everything and trained nothing: that saves a minute.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_run import main
from torch import nn

from eqm_video.training.run import Run  # noqa: F401 (imported here once, not in every process)
from eqm_video.training.trainer import Trainer

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_CPU": "1"}
HYBRID = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}


def fork(world: int, work: Callable[[], object], output: Path, environment: dict[str, str]) -> list[int]:
    """Run `work` in `world` processes, whose words go to `output`; returns their exit statuses, as of `os.wait`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ids = []
    for rank in range(world):
        ids.append(os.fork())
        if ids[-1]:
            continue
        launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in launcher.items()} if world > 1 else {})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if world > 1 else {})
        os.environ.update(environment)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # whatever it is, this process must not go on with the work of its parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return [os.waitpid(number, 0)[1] for number in ids]


def after_update(step: int, do: Callable[[Trainer], None]) -> None:
    """Call `do(trainer)` in this process after the update of a step."""
    update = Trainer._update

    def more(trainer: Trainer, number: int) -> None:
        update(trainer, number)
        if number == step:
            do(trainer)

    Trainer._update = more


def obstruct(trainer: Trainer) -> None:
    """Put a file where process 0 wants a folder for the parts of the checkpoint of this step."""
    if trainer.accelerator.is_main_process:
        trainer.checkpoints.folder.mkdir()
        trainer.checkpoints.stage(trainer.step).write_text("in the way")


def compile_cheaply() -> None:
    """Compile blocks with a backend that needs no C++ compiler."""
    compiled = nn.Module.compile
    nn.Module.compile = lambda block, **options: compiled(block, backend="aot_eager", **options)


if __name__ == "__main__":
    folder, recipe = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    more = ["train.optimizer=muon", "train.gradient_checkpointing=true", "train.steps=3", "preview.every=0"]

    def train(name: str, *words: str) -> Callable[[], int]:
        return lambda: main([*recipe, f"run.dir={folder / name}", *words])

    def killed() -> None:
        after_update(5, lambda trainer: os.kill(os.getpid(), signal.SIGKILL))
        train("pair")()

    def compiled() -> None:
        compile_cheaply()
        after_update(2, obstruct)
        train("muon", *more, "train.compile=true")()

    runs = [
        ("alone", 1, train("alone"), {}),
        ("killed", 2, killed, FSDP),
        ("resumed", 2, train("pair", "--resume"), FSDP),
        ("whole", 2, train("whole"), FSDP),
        ("back", 1, train("back", "--resume", str(folder / "whole" / "checkpoints" / "step_00000002")), {}),
        ("four", 4, train("four", "--resume", str(folder / "back" / "checkpoints" / "step_00000004")), FSDP | HYBRID),
        ("muon", 2, compiled, FSDP),
        ("muon_alone", 1, train("muon_alone", *more), {}),
    ]
    wanted = os.environ.get("ONLY", "").split()
    for name, world, work, environment in runs:
        if not wanted or name in wanted:
            print(name, fork(world, work, folder / f"{name}.txt", environment), flush=True)
