"""Faults that end a run or hold it up: the last whole step is kept, and no wait is endless."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import MemoryClips, encode, equal, read_metrics, tiny_network, tiny_trainer, weights
from torch.utils.data._utils import signal_handling
from warm import Process

from eqm_video.data.presence import PatientSubstitutes, patient
from eqm_video.data.scan import Substitutes
from eqm_video.data.video import VideoDecodeError
from eqm_video.errors import UserError
from eqm_video.system.patience import patience
from eqm_video.training.batches import Batches, BatchPlan
from eqm_video.training.heartbeat import Heartbeat, _Changes
from eqm_video.training.shared_memory import check_shared_memory
from eqm_video.training.signals import Stopped, StopSignals
from eqm_video.training.trainer import Hook

pytestmark = [pytest.mark.usefixtures("fresh_accelerator"), pytest.mark.filterwarnings("ignore::UserWarning")]


class Failing(MemoryClips):
    """Clips whose reading fails from some number on; the failure is `fail()`."""

    def __init__(self, after: int, fail) -> None:
        super().__init__()
        self.left, self.fail = after, fail
        self.files = [(f"clip-{index}", 0, None) for index in range(self.size)]

    def __getitem__(self, request):
        self.left -= 1
        if self.left < 0:
            self.fail()
        return super().__getitem__(request)


def raising(error: Exception):
    def fail() -> None:
        raise error

    return fail


def saved(trainer) -> dict[str, torch.Tensor]:
    return load_file(trainer.checkpoints.newest() / "model.safetensors")


# ------------------------------------------------------------------------------------- failures between steps


@pytest.mark.parametrize(
    "error",
    [
        UserError("8 of 8 files were tried"),
        OSError(5, "Input/output error", "videos/a.mp4"),
        RuntimeError("anything"),
        ValueError("a wrong value"),
        MemoryError("short"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_failure_while_reading_keeps_the_last_whole_step_and_resumes_exactly(tmp_path, error) -> None:
    options = {"steps": 6, "log_every": 4, "accumulation": 2}
    straight = tiny_trainer(tmp_path / "straight", **options)
    straight.run()
    clips = Failing(4 * 3 + 3, raising(error))  # in the middle of step 4, whose first half is in the running means
    cut = tiny_trainer(tmp_path / "cut", save_every=1000, clips=clips, **options)
    expected = UserError if isinstance(error, (UserError, OSError, MemoryError)) else type(error)
    with pytest.raises(expected) as raised:
        cut.run()
    assert cut.checkpoints.newest().name == "step_00000003"
    if expected is UserError:
        assert "step 3, the last whole one, is in" in str(raised.value) and "--resume" in str(raised.value)
    resumed = tiny_trainer(tmp_path / "cut", tiny_network(seed=9), **options)
    resumed.resume(cut.checkpoints.newest())
    resumed.run()
    assert equal(weights(straight.network), weights(resumed.network))
    lines, twins = read_metrics(tmp_path / "straight"), read_metrics(tmp_path / "cut")
    for key in ("step", "loss", "grad_norm", "loss_by_gamma", "loss_by_mode"):  # the failed step left no trace
        assert [line[key] for line in lines] == [line[key] for line in twins]


@pytest.mark.parametrize("place", ["evaluations", "hooks"])
def test_a_failing_evaluation_keeps_the_step_and_its_line(tmp_path, place) -> None:
    def fail(step, network):
        raise UserError("none can be decoded")

    trainer = tiny_trainer(tmp_path, steps=6, save_every=1000, log_every=2, **{place: [Hook(3, fail)]})
    with pytest.raises(UserError, match=r"none can be decoded; step 3, the last whole one, is in .*--resume"):
        trainer.run()
    assert [line["step"] for line in read_metrics(tmp_path)][:1] == [2]
    assert trainer.checkpoints.newest().name == "step_00000003"


def test_a_failure_inside_an_update_keeps_nothing_of_it(tmp_path, monkeypatch) -> None:
    trainer = tiny_trainer(tmp_path, steps=6, save_every=2)
    update = trainer._update

    def fail(step: int) -> None:
        if step == 4:
            raise RuntimeError("the device is lost")
        update(step)

    monkeypatch.setattr(trainer, "_update", fail)
    with pytest.raises(RuntimeError, match="the device is lost"):
        trainer.run()
    assert [path.name for path in trainer.checkpoints.all()] == ["step_00000002"]


def test_weights_that_are_not_finite_are_not_kept(tmp_path) -> None:
    trainer = tiny_trainer(tmp_path, steps=6, save_every=2, clips=Failing(4 * 3 + 1, raising(UserError("away"))))
    update = trainer._update

    def spoil(step: int) -> None:
        update(step)
        if step == 3:
            next(trainer.network.parameters()).data.view(-1)[0] = float("nan")

    trainer._update = spoil
    with pytest.raises(UserError, match=r"not finite, and not kept; the newest checkpoint is .*step_00000002"):
        trainer.run()
    assert trainer.checkpoints.newest().name == "step_00000002"


def test_a_step_that_the_device_refused_is_not_kept_when_the_next_fails(tmp_path) -> None:
    """The verdict on step 3 was not read yet when the data of step 4 fail."""
    trainer = tiny_trainer(tmp_path, steps=6, log_every=100, clips=Failing(4 * 3 + 1, raising(UserError("away"))))
    clip, calls = trainer._clip, []

    def spoil() -> torch.Tensor:
        calls.append(weights(trainer.network))
        if len(calls) == 3:
            next(trainer.network.parameters()).grad.view(-1)[0] = float("nan")
        return clip()

    trainer._clip = spoil
    with pytest.raises(UserError, match=r"away; step 2, the last whole one, is in"):
        trainer.run()
    again = tiny_trainer(tmp_path, tiny_network(seed=9), steps=6)
    again.resume(trainer.checkpoints.newest())
    assert again.step == again.ema.updates == 2 and len(again.meter.norms) == 2
    assert equal(weights(again.network), calls[2]) and equal(weights(trainer.network), calls[2])


def test_older_checkpoints_stay_when_a_failure_adds_one(tmp_path) -> None:
    clips = Failing(4 * 3 + 1, raising(UserError("away")))
    trainer = tiny_trainer(tmp_path, steps=6, save_every=2, keep=1, clips=clips)
    with pytest.raises(UserError, match="away"):
        trainer.run()
    assert [path.name for path in trainer.checkpoints.all()] == ["step_00000002", "step_00000003"]


def test_a_checkpoint_that_cannot_be_written_is_tried_again_while_training_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("eqm_video.training.saving.RETRY", 0.0)
    trainer = tiny_trainer(tmp_path, steps=6, save_every=2)
    write, tried = trainer.checkpoints.write, []

    def full(step, fill, record, **options):
        tried.append(step)
        if step in (2, 3):
            raise UserError(f"cannot write the checkpoint of step {step}: No space left on device")
        return write(step, fill, record, **options)

    monkeypatch.setattr(trainer.checkpoints, "write", full)
    with pytest.warns(UserWarning, match="No space left on device; it is tried again"):
        assert trainer.run()
    assert tried == [2, 3, 4, 6]


# ------------------------------------------------------------------------------------------------ waits for data


def test_a_wait_for_data_ends_at_a_stop_signal(tmp_path) -> None:
    hanging = threading.Event()
    trainer = tiny_trainer(tmp_path, steps=6, save_every=1000, clips=Failing(4 * 2 + 1, lambda: hanging.wait(60)))
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    timer.start()
    assert trainer.run() is False
    assert time.monotonic() - began < 10 and trainer.checkpoints.newest().name == "step_00000002"
    hanging.set()


def test_a_wait_for_data_has_a_limit_that_names_the_files(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EQM_VIDEO_PATIENCE", "0.001")
    hanging = threading.Event()
    trainer = tiny_trainer(tmp_path, steps=6, save_every=1000, clips=Failing(4 * 2 + 1, lambda: hanging.wait(60)))
    with pytest.raises(UserError, match=r"no data came for .*clip-\d.*step 2, the last whole one"):
        trainer.run()
    hanging.set()


class Killed(MemoryClips):
    """Clips in worker processes, one of which kills itself as often as the file says."""

    def __init__(self, counter: Path) -> None:
        super().__init__()
        self.counter = counter
        self.files = [(f"clip-{index}", 0, None) for index in range(self.size)]

    def __getitem__(self, request):
        left = int(self.counter.read_text())
        if left > 0 and request[0] == 3:
            self.counter.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(request)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_files_that_are_named_are_those_of_the_batch(wrapped) -> None:
    """Holds for several shapes of clips and for each part of a step, where the sets have names."""
    sets = [Named("short", 5), Named("long", 7)]
    plan = BatchPlan(size=5, batch_size=8, seed=0, images=4, image_size=7, accumulation=2)
    batches = Batches([SimpleNamespace(data=one) for one in sets] if wrapped else sets, MemoryClips().collate, plan)
    for step in (1, 2):
        for part in range(plan.passes):
            asked = [f"{sets[view].name}-{index}" for view, index, _ in plan.requests(step, part)]
            assert len(asked) > 1 and batches.requested(step * plan.passes + part) == asked
    assert Batches([MemoryClips()], MemoryClips().collate, BatchPlan(size=6, batch_size=4, seed=0)).requested(3) == []


class Named:
    """A set that has nothing but the names of its files."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.files = name, [(f"{name}-{index}", 0, None) for index in range(size)]


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("kills", [1, 99])
def test_a_killed_worker_is_started_again_and_the_batches_stay_the_same(tmp_path, kills) -> None:
    (tmp_path / "left").write_text("0")
    plan = BatchPlan(size=6, batch_size=4, seed=0, images=0)
    clips = Killed(tmp_path / "left")
    expected = [batch["names"] for batch in Batches([clips], clips.collate, plan).between(1, 5)]
    (tmp_path / "left").write_text(str(kills))
    signal_handling._SIGCHLD_handler_set = False
    signal_handling._set_SIGCHLD_handler()  # as a loader of somebody else's leaves it
    reader = Batches([clips], clips.collate, plan, workers=1).between(1, 5)
    if kills == 1:
        assert [batch["names"] for batch in reader] == expected
    else:
        with pytest.raises(UserError, match=r"ended by SIGKILL, around the files .*clip-.*memory may be short"):
            list(reader)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # torch's would raise in the middle of an update
    reader.close()


@pytest.mark.parametrize(("free", "fits"), [(64 * 2**20, False), (2**30, True)])
def test_too_little_shared_memory_is_said_at_the_start(monkeypatch, free, fits) -> None:
    monkeypatch.setattr("eqm_video.training.shared_memory.PLACE", Path("/tmp"))
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))
    monkeypatch.setattr(sys, "platform", "linux")
    batch = 16 * 16 * 3 * 128 * 128
    check_shared_memory(batch, workers=0)
    if fits:
        check_shared_memory(batch, workers=4)
        with pytest.raises(UserError, match="in each of 12 processes"):
            check_shared_memory(batch, workers=4, processes=12)
    else:
        with pytest.raises(UserError, match=r"64 MiB free.*--shm-size=1g.*data\.workers=2, or data\.workers=0"):
            check_shared_memory(batch, workers=4)
        with pytest.raises(UserError, match=r"or type data\.workers=0"):
            check_shared_memory(10 * batch, workers=1)


# --------------------------------------------------------------------------------------------- disks that go away


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    for index in range(12):
        (tmp_path / "data" / f"{index}.bin").write_bytes(bytes([index]))
    return tmp_path / "data"


def read_byte(folder: Path, index: int) -> int:
    try:
        return (folder / f"{index}.bin").read_bytes()[0]
    except OSError as error:
        raise VideoDecodeError(f"{folder / str(index)}: no such file") from error


@pytest.mark.parametrize("how", ["renamed", "emptied"])  # an empty mount point is what an unmounted disk leaves
def test_a_disk_that_comes_back_changes_no_clip(folder, monkeypatch, how) -> None:
    monkeypatch.setattr("eqm_video.data.presence.POLL", 0.02)
    files = PatientSubstitutes(folder, [f"{index}.bin" for index in range(12)])
    folder.rename(folder.parent / "away")
    if how == "emptied":
        folder.mkdir()

    def back() -> None:
        if how == "emptied":
            folder.rmdir()
        (folder.parent / "away").rename(folder)

    timer = threading.Timer(0.3, back)
    timer.start()
    with pytest.warns(UserWarning, match="waiting for it"):
        assert files.take(7, 1, lambda index: read_byte(folder, index)) == 7
    timer.join()


def test_a_disk_that_stays_away_is_a_sentence(folder, monkeypatch) -> None:
    monkeypatch.setenv("EQM_VIDEO_PATIENCE", "0.002")
    files = PatientSubstitutes(folder, [f"{index}.bin" for index in range(12)])
    folder.rename(folder.parent / "away")
    with pytest.raises(UserError, match=r"has been away for 0\.12 s: none of 12 files .*bring it back"):
        files.take(7, 1, lambda index: read_byte(folder, index))


def test_a_single_file_that_is_gone_or_fails_has_a_substitute_as_before(folder) -> None:
    files, plain = PatientSubstitutes(folder, [f"{index}.bin" for index in range(12)]), Substitutes(12)
    (folder / "7.bin").unlink()
    expected = plain.take(7, 1, lambda index: read_byte(folder, index))

    def stale(index: int) -> int:
        if index == 7:
            raise OSError(116, "Stale file handle")
        return read_byte(folder, index)

    assert expected != 7 and files.take(7, 1, lambda index: read_byte(folder, index)) == expected
    assert files.take(7, 1, stale) == expected


def test_sets_in_memory_are_never_away() -> None:
    assert patient(MemoryClips()) is None
    assert patient(SimpleNamespace(root=Path("x"), files=[("a", 0, None)], pixels=np.zeros(1))) is None


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_patience_is_a_number_above_zero(monkeypatch, text) -> None:
    monkeypatch.setenv("EQM_VIDEO_PATIENCE", text)
    with pytest.raises(UserError, match="EQM_VIDEO_PATIENCE"):
        patience(1.0)


# -------------------------------------------------------------------------------------------------------- signals


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_closed_terminal_is_a_stop_signal_and_nohup_is_left_alone() -> None:
    with StopSignals(speaks=False) as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(speaks=False) as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.received and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_say_what_they_do(capfd) -> None:
    with StopSignals(newest=lambda: "run/step_00000002") as signals:
        signal.raise_signal(signal.SIGINT)
        assert "stopping after this step with a checkpoint; once more" in capfd.readouterr().err
        with signals.writing():
            signals._last -= 2
            signal.raise_signal(signal.SIGINT)
            assert "is being written" in capfd.readouterr().err
        signals._last -= 2
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGINT)
        assert "no checkpoint was written; the newest checkpoint is run/step_00000002" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["evaluations", "hooks"])
def test_a_signal_in_a_side_task_takes_no_further_step(tmp_path, place) -> None:
    steps = []

    def long(step, network):
        steps.append(step)
        signal.raise_signal(signal.SIGTERM)

    trainer = tiny_trainer(tmp_path, steps=9, save_every=1000, **{place: [Hook(3, long)]})
    assert trainer.run() is False
    assert trainer.step == 3 and steps == [3] and trainer.checkpoints.newest().name == "step_00000003"


def test_a_held_out_loss_is_left_off_at_a_signal() -> None:
    from eqm_video.core.decay import TruncatedDecay
    from eqm_video.core.objective import EqMObjective
    from eqm_video.training.held_out import HeldOut

    def stop() -> None:
        raise Stopped

    clips = MemoryClips()
    process = SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0)
    options = {"clips": 2, "gammas": (0.3,), "seed": 3, "reference_fps": 8.0, "accelerator": process, "pulse": stop}
    assert HeldOut(clips, clips.collate, encode, EqMObjective(TruncatedDecay()), **options)(1, tiny_network()) == {}


# ---------------------------------------------------------------------------------------------- several processes

PROGRAM = """
import os, sys, time, signal, pathlib
sys.path.insert(0, "tests")
from accelerate import Accelerator
from tiny_run import encode, tiny_trainer
from eqm_video.errors import UserError
from eqm_video.training.heartbeat import Heartbeat
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
def encoding(batch, generators):
    if rank == 1 and trainer.step == 3:
        if sys.argv[2] == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            raise UserError("rank 1 cannot read")
    return encode(batch, generators)
with Heartbeat(accelerator) as heartbeat:
    trainer = tiny_trainer(pathlib.Path(sys.argv[1]), accelerator=accelerator, encode=encoding, steps=8, save_every=100,
                           heartbeat=heartbeat)
    pathlib.Path(sys.argv[1], f"pid{rank}").write_text(str(os.getpid()))
    trainer.run()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process")
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("stopped", "no sign of life for 3 s from process 1 (last at "),
        ("fails", "rank 1 cannot read"),
    ],
)
def test_a_process_that_hangs_or_fails_is_named_and_the_last_step_is_kept(tmp_path, how, sentence) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    environment["EQM_VIDEO_PATIENCE"] = {"stopped": "0.01", "fails": "1"}[how]
    (tmp_path / "program.py").write_text(PROGRAM)
    began = time.monotonic()
    process = Process(tmp_path / "program.py", tmp_path / "run", how, environment=environment, ranks=2)
    if how == "stopped":  # the launcher cannot end a stopped process by SIGTERM
        waker = threading.Thread(target=_kill_stopped, args=(tmp_path / "run" / "pid1", process), daemon=True)
        waker.start()
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0 and time.monotonic() - began < 90
    assert sentence in errors, errors
    assert "step 3, the last whole one, is in" in errors, errors
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000003"]


def test_a_stuck_process_is_distinguished_from_a_long_look_at_the_data(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("eqm_video.training.heartbeat.time.monotonic", lambda: clock[0])
    heart = Heartbeat(SimpleNamespace(process_index=0, num_processes=2))

    def trouble(limited: bool, advance: int) -> str | None:
        lives, steps = _Changes(2), _Changes(2)
        for tick in range(50):  # each a minute; process 1 stands still, process 0 too where it does not advance
            clock[0] += 60
            state = {"beats": tick, "limited": limited}
            states = [{**state, "steps": tick * advance, "doing": "step 13"}, {**state, "steps": 7, "doing": "step 12"}]
            found = heart._trouble(states, lives, steps)
            if found is not None:
                return found
        return None

    assert trouble(limited=False, advance=0) is None  # one looks at files for hours, the other waits for it
    assert trouble(limited=True, advance=1) is None
    assert "for 1860 s: process 0 at step 13, process 1 at step 12" in trouble(limited=True, advance=0)


def _kill_stopped(file: Path, launcher: Process) -> None:
    checkpoints = file.parent / "checkpoints"
    while launcher.poll() is None:
        if checkpoints.is_dir() and any(checkpoints.glob("step_*")):
            time.sleep(2)
            os.kill(int(file.read_text()), signal.SIGKILL)
            return
        time.sleep(0.2)
