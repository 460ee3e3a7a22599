"""No command changes a file of somebody else, whatever its name and wherever it lies in a folder that is written to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eqm_video import cli, commands
from eqm_video.errors import UserError
from eqm_video.output import media
from eqm_video.output.outputs import OUTPUTS, SAMPLES, claim_output
from eqm_video.system import files
from eqm_video.system.claims import Output

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

Words = Callable[[Path, Path], list[str]]  # the command line that writes to a folder; the other path does not exist
# Each command with every folder that it is told to write to. None of them gets as far as a model.
COMMANDS: Mapping[str, list[Words]] = {
    "train": [lambda out, no: [f"run.dir={out}", f"data.root={no}", "codec.name=pixels"]],
    "look": [lambda out, no: [f"data.root={no}", "codec.name=pixels", "--out", str(out)]],
    "cache": [lambda out, no: [f"data.root={no}", "codec.name=pixels", "--out", str(out)]],
    "sample": [lambda out, no: [str(no), "--out", str(out)], lambda out, no: [str(no), f"--out={out}", "--overwrite"]],
    "compare": [lambda out, no: [str(no), "--data", str(no), "--out", str(out)]],
    "compare-results": [lambda out, no: [str(no), str(no), "--out", str(out)]],
    "convert": [lambda out, no: [str(no), str(out)]],
    "merge": [lambda out, no: [str(no), str(no), "--out", str(out)]],
    "demo": [
        lambda out, no: ["--data", str(no), "--run", str(no), "--out", str(out)],
        lambda out, no: ["--data", str(no), "--out", str(no), "--run", str(out)],
    ],
    "oracle": [lambda out, no: ["--out", str(out)]],
    "plane": [lambda out, no: ["--out", str(out)]],
    "tasks": [
        lambda out, no: ["--models", str(no), "--out", str(out)],
        lambda out, no: ["--only", "shared", "--data", str(no), "--runs", str(no), "--out", str(out)],
    ],
    "forcing": [lambda out, no: ["--out", str(out)]],
    "ablate": [lambda out, no: ["--only", "base", "--data", str(no), "--out", str(out)]],
    "report": [lambda out, no: [str(no), "--out", str(out)]],  # without --out a folder of others is no run
    "reconstruct": [lambda out, no: [str(no), "--out", str(out)]],
    "train-codec": [lambda out, no: [str(out)]],
    "train-shipped": [
        lambda out, no: ["--data", str(no), "--run", str(no), "--out", str(out)],
        lambda out, no: ["--data", str(no), "--out", str(no), "--run", str(out)],
    ],
    **{
        name: [lambda out, no: [str(no), "--out", str(out)]]
        for name in (
            "descent",
            "sweep",
            "adaptive",
            "curvature",
            "few-steps",
            "rollouts",
            "distill",
            "history",
            "regions",
        )
    },
    "compose": [lambda out, no: [str(no), "--out", str(out)]],
    **{
        name: [lambda out, no: [str(no), "--data", str(no), "--out", str(out)]]
        for name in ("partial", "ood", "predict", "evaluate", "readout")
    },
}
PRINTED = {"completion", "doctor", "explain", "page", "push", "recipes", "records"}  # no file, or only into a clone
LINES = [(name, words) for name, lines in COMMANDS.items() for words in lines]
THEIRS = ("notes.txt", "parts/chapter1.tex", "clips/mine.gif", "report.json", "checkpoints/x", "previews/x", "export/x")
THEIRS += (".incomplete-x", "deep/er/x", "parts/settings.json", "parts/00000000.npy", ".grid.gif.swp", "metrics.tmp")


def example(pattern: str) -> str:
    """A name that the pattern matches."""
    name = re.sub(r"\(([^|()]+)\|[^)]*\)", r"\1", pattern)
    name = re.sub(r"\([^)]*\)\?", "", name)
    for piece, text in ((r"\.", "."), (r"\d{6,}", "000000"), (r"\d{8,}", "00000000"), (r"\w*", ""), (".+", "x")):
        name = name.replace(piece, text)
    assert re.fullmatch(pattern, name), (pattern, name)
    return name


def names_of(output: Output) -> list[str]:
    return [example(pattern) for pattern in (*output.records, *output.pictures, *output.weak) if "." in pattern]


def put(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"mine " + name.encode())
    os.utime(folder / name, ns=(10**18, 10**18))


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else (b"", 0)
        for path in folder.rglob("*")
    }


def run(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Refused: status 2 and one sentence, which is returned."""
    assert cli.main([command, *words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def test_every_command_is_here() -> None:
    assert set(COMMANDS) == set(commands.COMMANDS) - PRINTED == set(OUTPUTS)


@pytest.mark.parametrize(("command", "words"), LINES, ids=[f"{name}{k}" for k, (name, _) in enumerate(LINES)])
def test_a_folder_of_others_is_refused_and_stays_as_it_is(command, words, tmp_path, capsys) -> None:
    output = OUTPUTS["train" if "--run" in words(tmp_path, tmp_path)[-2:] else command]
    every = sorted({*THEIRS, *(name for one in (output, SAMPLES, OUTPUTS["train"]) for name in names_of(one))})
    for number, name in enumerate(every):
        folder = tmp_path / str(number)
        put(folder, name)
        before = state(tmp_path)
        said = run(command, words(folder, tmp_path / "no"), capsys)
        assert str(folder) in said and name.partition("/")[0] in said and "nothing was changed" in said
        assert state(tmp_path) == before, name


@pytest.mark.parametrize(("command", "words"), LINES, ids=[f"{name}{k}" for k, (name, _) in enumerate(LINES)])
def test_in_a_folder_of_ours_nothing_of_others_is_touched(command, words, tmp_path, capsys) -> None:
    output = OUTPUTS["train" if "--run" in words(tmp_path, tmp_path)[-2:] else command]
    if not output.records:
        return  # convert wants a new folder
    for number, name in enumerate(names_of(output)):
        folder = tmp_path / str(number)
        files.write_record(folder / ("ood.json" if command != "ood" else "plane.json"), {})
        for other in (name, *THEIRS):
            put(folder, other)
        before = state(tmp_path)
        said = run(command, words(folder, tmp_path / "no"), capsys)
        assert f"holds {name}" in said or f", {name}" in said, said
        assert state(tmp_path) == before, name


@pytest.mark.parametrize(("command", "words"), LINES, ids=[f"{name}{k}" for k, (name, _) in enumerate(LINES)])
def test_a_path_that_is_not_a_folder_is_one_sentence_and_nothing_is_left(command, words, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, says in (
        ("file", "is a file"),
        ("file/in", "part of the path"),
        ("link", "is missing"),
        ("a\0b", "NUL"),
    ):
        before = state(tmp_path)
        said = run(command, words(tmp_path / out, tmp_path / "no"), capsys)
        assert says in said or (out == "file/in" and "is a file" in said), said
        assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        line
        for line in LINES
        if line[0] not in ("oracle", "plane", "train-codec", "train-shipped", "demo", "ablate", "forcing")
    ],
)
def test_a_command_that_fails_at_the_start_leaves_no_folder(command, words, tmp_path, capsys) -> None:
    if "--only" in words(tmp_path, tmp_path):
        return  # would train
    run(command, words(tmp_path / "new" / "deep", tmp_path / "no"), capsys)
    assert not list(tmp_path.iterdir())


def test_every_file_that_a_command_names_is_declared() -> None:
    rooms = [Path(cli.__file__).parents[1] / name for name in ("studies", "sampling", "evaluation", "training")]
    text = "".join(path.read_text("utf-8") for room in rooms for path in room.rglob("*.py"))
    found = set(re.findall(r'"([\w-]+\.(?:json|gif|png|csv|md|npz|mp4))"', text))
    found -= {"settings.json", "checkpoint.json", "pipeline.json", "samples.gif", "samples.png"}  # they lie deeper
    assert len(found) > 40 and not [name for name in found if not any(one.writes(name) for one in OUTPUTS.values())]


def test_clutter_and_own_folders_are_no_obstacle(tmp_path) -> None:
    for name in (".DS_Store", "train.log", "slurm-12.out", ".gitkeep"):
        put(tmp_path / "a", name)
    (tmp_path / "a" / "empty").mkdir()
    assert claim_output(tmp_path / "a", "plane") == tmp_path / "a"
    files.write_record(tmp_path / "b" / "plane" / "plane.json", {})
    files.write_record(tmp_path / "b" / "oracle" / "oracle.json", {})
    claim_output(tmp_path / "b", "sample")
    put(tmp_path / "b", "mine.txt")
    with pytest.raises(UserError, match=r"mine\.txt"):
        claim_output(tmp_path / "b", "sample")
    root = Path(__file__).resolve().parent.parent
    claim_output(root / "video_samples" / "demo", "demo", probe=False)  # where the demo writes by default


def test_pictures_of_earlier_versions_are_known_by_their_record(tmp_path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "plane.png")
    with pytest.raises(UserError, match=r"plane\.png"):
        claim_output(tmp_path, "plane")
    (tmp_path / "plane.json").write_text(json.dumps({"settings": {}, "exact": {}, "seconds": {}}))
    claim_output(tmp_path, "plane")
    media.write_png(tmp_path / "plane.png", np.zeros((4, 4, 3), np.uint8))
    files.write_record(tmp_path / "plane.json", {})
    claim_output(tmp_path, "plane")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "plane.png")
    with pytest.raises(UserError, match=r"plane\.png.*would overwrite"):
        claim_output(tmp_path, "plane")


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "data_index.json").write_text('{"version": 1, "kind": "VideoInfo", "files": {}}')
    (tmp_path / ".data_index.json.4194304.tmp").write_text("half")
    claim_output(tmp_path, "train", option="run.dir")
    assert not (tmp_path / ".data_index.json.4194304.tmp").exists()
    (tmp_path / "metrics.jsonl").write_bytes(b"\0" * 9 + b'{"step": 2, "loss": 1}\n')
    text = "".join(
        f"{name}:\n  a: 1\n" for name in ("model", "codec", "data", "objective", "gamma", "train", "held_out")
    )
    (tmp_path / "config.yaml").write_text("data:\n  root: mine\n")
    with pytest.raises(UserError, match=r"run\.dir=.* holds config\.yaml.*would overwrite"):
        claim_output(tmp_path, "train", option="run.dir")
    (tmp_path / "config.yaml").write_text(
        text + "preview: {}\nsampler: {}\ntrack: {}\nrun: {}\n"
    )  # of earlier versions
    claim_output(tmp_path, "train", option="run.dir")
    assert SAMPLES.holds(tmp_path) is False


def test_a_run_of_another_program_is_no_run_of_ours(tmp_path) -> None:
    put(tmp_path, "checkpoints/step_00001000/model.safetensors")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    with pytest.raises(UserError, match=r"holds checkpoints/, metrics\.jsonl"):
        claim_output(tmp_path, "train", option="run.dir")
