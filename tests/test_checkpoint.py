"""Checkpoints: written whole or not at all, read back bitwise, refused with a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_run import ROOT, equal, read_metrics, tiny_network, tiny_trainer, weights

from eqm_video.errors import UserError
from eqm_video.training.checkpoint import Checkpoints, read_record, replace_folder
from eqm_video.training.lock import lock_run

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def fill(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("whole")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    for step in (5, 10, 100_000_000):
        path = checkpoints.write(step, fill, {"config": {"a": 1}})
        record = read_record(path)
        assert list(record.pop("files")) == ["inner/file"] and record == {"step": step, "config": {"a": 1}}
    assert names(checkpoints.folder) == ["step_00000010", "step_100000000"]
    assert checkpoints.newest().name == "step_100000000"
    everything = Checkpoints(tmp_path / "all", keep=None)
    for step in range(5):
        everything.write(step, fill, {})
    assert len(everything.all()) == 5


@pytest.mark.parametrize("listed", [True, False])
def test_files_of_others_in_a_checkpoint_outlive_it(tmp_path, listed) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)

    def state(folder: Path) -> None:
        (folder / "ema").mkdir()
        (folder / "ema" / "config.json").write_text("{}")

    old = checkpoints.write(1, state, {})
    if not listed:  # as earlier versions wrote records
        (old / "checkpoint.json").write_text('{"step": 1}')
    (old / "notes.txt").write_text("mine")
    checkpoints.write(2, state, {})
    assert [path for path in old.rglob("*") if path.is_file()] == [old / "notes.txt"]
    assert [path.name for path in checkpoints.all()] == ["step_00000002"]


def test_a_crash_while_writing_leaves_the_older_one_and_a_leftover(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.write(1, fill, {})

    def crash(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(2, crash, {})
    assert checkpoints.newest().name == "step_00000001"
    assert len(names(tmp_path)) == 2
    checkpoints.remove_leftovers()
    assert names(tmp_path) == ["step_00000001"]


def test_a_crash_while_deleting_never_leaves_half_of_a_checkpoint_under_its_name(tmp_path, monkeypatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.write(1, fill, {})

    def crash(path, **options):
        if Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eqm_video.training.checkpoint.shutil.rmtree", crash)
        checkpoints.write(2, fill, {})
    assert [path.name for path in checkpoints.all()] == ["step_00000002"]
    checkpoints.remove_leftovers()
    assert names(tmp_path) == ["step_00000002"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_is_a_sentence_that_names_the_last_whole_one(tmp_path, error) -> None:
    def full(folder: Path) -> None:
        raise error

    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, fill, {})
    with pytest.raises(UserError, match=r"step 2 .*No space left.*step_00000001"):
        checkpoints.write(2, full, {})


def test_a_folder_is_replaced_whole(tmp_path) -> None:
    for text in ("old", "new"):
        replace_folder(tmp_path / "export", lambda folder, text=text: (folder / text).write_text(text))
    assert names(tmp_path) == ["export"] and names(tmp_path / "export") == ["new"]


def test_no_whole_checkpoint_there(tmp_path) -> None:
    (tmp_path / "step_00000001").mkdir()
    assert Checkpoints(tmp_path).newest() is None
    with pytest.raises(UserError, match="no whole checkpoint"):
        read_record(tmp_path / "step_00000001")
    (tmp_path / "step_00000001" / "checkpoint.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_record(tmp_path / "step_00000001")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_is_exact(tmp_path, optimizer) -> None:
    """Weights, averages, optimizer and log of a run that was cut in two equal those of the run in one piece."""
    straight = tiny_trainer(tmp_path / "straight", steps=7, log_every=3, optimizer=optimizer)
    straight.run()
    first = tiny_trainer(tmp_path / "cut", steps=7, log_every=3, save_every=4, optimizer=optimizer)
    first.settings = type(first.settings)(**{**vars(first.settings), "steps": 5})
    first.run()  # one step further than the checkpoint that is resumed
    resumed = tiny_trainer(tmp_path / "cut", tiny_network(seed=9), steps=7, log_every=3, optimizer=optimizer)
    resumed.resume(tmp_path / "cut" / "checkpoints" / "step_00000004")
    assert resumed.step == 4 and [line["step"] for line in read_metrics(tmp_path / "cut")] == [3]
    resumed.run()
    assert equal(weights(straight.network), weights(resumed.network))
    assert equal(straight.ema.average, resumed.ema.average)
    one, other = straight.optimizer.state_dict(), resumed.optimizer.state_dict()
    for part, twin in zip(one.get("parts", [one]), other.get("parts", [other]), strict=True):
        assert part["state"] and all(equal(part["state"][index], twin["state"][index]) for index in part["state"])
    timing = {"seconds", "clips_per_second"}
    for line, twin in zip(read_metrics(tmp_path / "straight"), read_metrics(tmp_path / "cut"), strict=True):
        assert {k: v for k, v in line.items() if k not in timing} == {k: v for k, v in twin.items() if k not in timing}


def test_another_architecture_and_damage_are_sentences(tmp_path) -> None:
    trainer = tiny_trainer(tmp_path, steps=1)
    trainer.run()
    checkpoint = trainer.checkpoints.newest()
    before = tiny_network(depth=3)
    with pytest.raises(UserError, match="does not fit"):
        tiny_trainer(tmp_path / "other", before).resume(checkpoint)
    (checkpoint / "optimizer.pt").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read"):
        tiny_trainer(tmp_path / "same").resume(checkpoint)
    weights_file = checkpoint / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read"):
        tiny_trainer(tmp_path / "again").resume(checkpoint)


@pytest.mark.parametrize("damage", ["truncated", "lacking", "gone"])
def test_damaged_averages_are_sentences(tmp_path, damage) -> None:
    trainer = tiny_trainer(tmp_path, steps=1)
    trainer.run()
    file = trainer.checkpoints.newest() / "ema" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "lacking":
        save_file(dict(list(load_file(file).items())[1:]), file)
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*resume from an older one"):
        tiny_trainer(tmp_path / "again").resume(trainer.checkpoints.newest())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["optimizer.pt", "ema/config.json"])
def test_every_file_of_a_checkpoint_on_a_full_disk_is_a_sentence(tmp_path, monkeypatch, name) -> None:
    trainer = tiny_trainer(tmp_path, steps=1)
    save = trainer.checkpoints.write

    def write(step, fill, record, **options):
        def full(folder: Path) -> None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to("/dev/full")
            fill(folder)

        return save(step, full, record, **options)

    monkeypatch.setenv("EQM_VIDEO_PATIENCE", "0.01")

    monkeypatch.setattr(trainer.checkpoints, "write", write)
    with pytest.raises(UserError, match=r"cannot write the checkpoint of step 1 .*No space left"):
        trainer.run()
    assert trainer.checkpoints.newest() is None


def test_a_log_that_cannot_be_written_waits_and_is_said_once(tmp_path) -> None:
    log = tiny_trainer(tmp_path / "run").log
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.warns(UserWarning, match=r"cannot write .*metrics.jsonl \(No such file or directory\)") as said:
        log.write(1, {"loss": 1.0})
        log.write(2, {"loss": 2.0})
    assert len(said) == 1 and len(log.waiting) == 2
    (tmp_path / "gone").rename(tmp_path / "run")
    log.write(3, {"loss": 3.0})
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3] and log.waiting == []


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX's")
def test_a_run_belongs_to_one_process_until_that_is_killed(tmp_path) -> None:
    program = (
        "import os, sys, time, pathlib\nfrom eqm_video.training.lock import lock_run\n"
        "with lock_run(pathlib.Path(sys.argv[1])):\n"
        "    child = os.fork()\n"  # as the workers that decode the data are
        "    if child: print(child, flush=True)\n"
        "    time.sleep(60)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "run")]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(UserError, match=r"another process is training in run\.dir="), lock_run(tmp_path / "run"):
            pass
        process.kill()
        process.wait()
        with lock_run(tmp_path / "run"):
            pass
    finally:
        process.kill()
        os.kill(child, 9)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_lock_that_is_no_file_is_not_waited_for(tmp_path) -> None:
    for name, make in (("pipe", os.mkfifo), ("folder", os.mkdir)):
        (tmp_path / name).mkdir()
        make(tmp_path / name / ".lock")
        with pytest.raises(UserError, match=r"\.lock is no file.*: remove it, or give"), lock_run(tmp_path / name):
            pass


def test_nothing_in_a_checkpoint_is_executed(tmp_path) -> None:
    trainer = tiny_trainer(tmp_path, steps=1)
    trainer.run()
    checkpoint = trainer.checkpoints.newest()

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"optimizer": Trap()}, checkpoint / "optimizer.pt")
    with pytest.raises(UserError):
        tiny_trainer(tmp_path / "victim").resume(checkpoint)
    assert not (tmp_path / "executed").exists()


def test_log_lines_after_the_step_and_a_broken_last_line_are_forgotten(tmp_path) -> None:
    log = tiny_trainer(tmp_path).log
    log.file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)) + '{"step": 8, "lo')
    log.truncate(4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4]
    log.write(6, {"loss": float("nan"), "held_out": {"0.1": 2.0}})
    assert read_metrics(tmp_path)[-1] == {"step": 6, "loss": None, "held_out": {"0.1": 2.0}}
