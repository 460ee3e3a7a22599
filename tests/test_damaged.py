"""Damaged checkpoints and logs: each is one sentence that names the file, and none blocks a whole one beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import encode, equal, read_metrics, tiny_network, tiny_trainer, weights

from eqm_video.data.identity import difference, identity
from eqm_video.errors import UserError
from eqm_video.training.checkpoint import Checkpoints, load_state, read_record
from eqm_video.training.config import load_config, to_tree
from eqm_video.training.resume import NEWEST, note_rates, starting_point

pytestmark = [pytest.mark.usefixtures("fresh_accelerator"), pytest.mark.filterwarnings("ignore::UserWarning")]
FILES = ("model.safetensors", "optimizer.pt", "ema/config.json", "ema/diffusion_pytorch_model.safetensors")
OLD = Path(__file__).resolve().parent / "data" / "run_6902fd2"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with whole checkpoints of steps 2 and 4."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("made") / "run"
    config = load_config(None, [f"run.dir={folder}", "train.steps=4", "data.root=videos"])
    record = {"config": to_tree(config), "data": {"size": 6, "labels": ["left", "right"]}}
    tiny_trainer(folder, steps=4, save_every=2, log_every=1, record=record).run()
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def config_of(run: Path):
    return load_config(None, [f"run.dir={run}", "train.steps=4", "data.root=videos"])


def resume(run: Path, checkpoint: Path):
    trainer = tiny_trainer(run, tiny_network(seed=9), steps=8)
    trainer.resume(checkpoint)
    return trainer


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    file.write_bytes(content)


# ----------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [0.0, 0.3, 0.7, 1.0, "cut", "empty", "gone", "folder"])
def test_every_damaged_file_is_named_with_the_command_that_goes_on(run, name, damage) -> None:
    file = at(run, 4) / name
    if isinstance(damage, float):
        flip(file, damage)
    elif damage == "cut":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "empty":
        os.truncate(file, 0)
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
    with pytest.raises(UserError) as error:
        resume(run, at(run, 4))
    sentence = str(error.value)
    assert name in sentence and "--resume --from-older" in sentence and "does not fit" not in sentence
    assert "weights_only" not in sentence and sentence.count("\n") == 0
    start = starting_point(config_of(run), NEWEST, from_older=True)
    assert start.checkpoint == at(run, 2) and name in start.notes[0]
    resume(run, start.checkpoint)


def test_from_older_sets_later_ones_aside_under_a_name_and_deletes_none(run) -> None:
    flip(at(run, 4) / "model.safetensors", 0.9)
    (run / "checkpoints" / "damaged-step_00000004").write_text("a file of the user's")
    start = starting_point(config_of(run), NEWEST, from_older=True)
    assert at(run, 4).is_dir()  # looking changes nothing
    (note,) = start.set_aside(Checkpoints(run / "checkpoints"))
    assert note.endswith("damaged-step_00000004-2")
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["damaged-step_00000004", "damaged-step_00000004-2", "step_00000002"]
    assert sorted(p.name for p in (run / "checkpoints/damaged-step_00000004-2").iterdir())[:2] == [
        "checkpoint.json",
        "ema",
    ]


def test_a_path_goes_back_to_the_start_on_request(run) -> None:
    with pytest.raises(UserError, match=r"already holds step_00000004.*--from-older to go back"):
        starting_point(config_of(run), str(at(run, 2)))
    start = starting_point(config_of(run), str(at(run, 2)), from_older=True)
    assert start.checkpoint == at(run, 2) and start.older
    start.set_aside(Checkpoints(run / "checkpoints"))
    trainer = resume(run, at(run, 2))
    assert [line["step"] for line in read_metrics(run)] == [1, 2] and trainer.step == 2


# --------------------------------------------------------------------------------------------- damaged records

RECORDS = {
    "object": "{}",
    "null": "null",
    "list": "[]",
    "number": "3",
    "text": '"step"',
    "nothing": "",
    "half": '{"step": 99, "conf',
    "brackets": "[" * 200_000,
    "objects": '{"a":' * 200_000,
    "not utf-8": b'{"step": 99, "x": "\xff"}',
    "zeros": b"\0" * 300,
    "nan": '{"step": NaN}',
    "step text": '{"step": "99"}',
    "step true": '{"step": true}',
    "step float": '{"step": 99.0}',
    "step negative": '{"step": -99}',
    "step lies": '{"step": 3}',
    "config": '{"step": 99, "config": []}',
    "data": '{"step": 99, "data": 5}',
    "data size": '{"step": 99, "data": {"size": "6", "labels": []}}',
    "labels": '{"step": 99, "data": {"size": 6, "labels": "ab"}}',
    "label": '{"step": 99, "data": {"size": 6, "labels": [1]}}',
    "world": '{"step": 99, "world_size": 0}',
    "world text": '{"step": 99, "world_size": "two"}',
    "files": '{"step": 99, "files": ["model.safetensors"]}',
    "file": '{"step": 99, "files": {"model.safetensors": 3}}',
    "outside": '{"step": 99, "files": {"../../x": {"bytes": 1, "sha256": ""}}}',
}


@pytest.mark.parametrize("text", RECORDS.values(), ids=RECORDS)
def test_a_broken_record_is_a_sentence_and_does_not_block_the_whole_one_beside_it(run, text) -> None:
    broken = at(run, 99)
    broken.mkdir()
    (broken / "checkpoint.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"checkpoint\.json is damaged \(.*--from-older") as error:
        read_record(broken)
    assert len(str(error.value)) < 500
    for from_older in (False, True):
        start = starting_point(config_of(run), NEWEST, from_older)
        assert start.checkpoint == at(run, 4)
        assert len(start.notes) == 1 and "step_00000099" in start.notes[0]
    assert Checkpoints(run / "checkpoints").newest() == at(run, 4)


def test_only_broken_checkpoints_start_nothing_anew(run) -> None:
    for step in (2, 4):
        (at(run, step) / "checkpoint.json").write_text("{}")
    for resume_with, more in ((None, "already holds a run"), (NEWEST, "no whole checkpoint")):
        with pytest.raises(UserError, match=f"{more}.*another run.dir"):
            starting_point(config_of(run), resume_with)
    with pytest.raises(UserError, match="no whole checkpoint"):
        starting_point(config_of(run), NEWEST, from_older=True)


@pytest.mark.parametrize("missing", ["config", "data", "world_size"])
def test_a_record_without_what_a_resume_needs_is_a_sentence(run, missing) -> None:
    file = at(run, 4) / "checkpoint.json"
    record = json.loads(file.read_text())
    del record[missing]
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"has no {missing}"):
        read_record(at(run, 4), "config", "data", "world_size")


def test_a_checkpoint_that_was_made_anew_over_a_broken_one_sets_that_aside(run) -> None:
    (at(run, 6)).mkdir()
    (at(run, 6) / "mine").write_text("kept")
    resume(run, at(run, 4)).checkpoints.write(6, lambda folder: None, {})
    assert (run / "checkpoints" / "damaged-step_00000006" / "mine").read_text() == "kept"


# ------------------------------------------------------------- contents of records from before there were hashes


def without_hashes(checkpoint: Path) -> Path:
    file = checkpoint / "checkpoint.json"
    record = json.loads(file.read_text())
    assert record.pop("files")
    file.write_text(json.dumps(record))
    return checkpoint / "optimizer.pt"


def spoil(state, path: str, value) -> None:
    *way, last = path.split("/")
    for key in way:
        state = state[int(key) if key.isdigit() else key]
    state[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ema_updates", -7),
        ("ema_updates", "many"),
        ("extra", {}),
        ("extra/meter", {}),
        ("extra/meter", None),
        ("extra/seconds", float("nan")),
        ("optimizer", {}),
        ("optimizer", []),
        ("optimizer/param_groups/0/lr", float("nan")),
        ("optimizer/param_groups/0/weight_decay", float("inf")),
    ],
)
def test_contents_that_cannot_be_are_refused(run, path, value) -> None:
    file = without_hashes(at(run, 4))
    state = torch.load(file, weights_only=True)
    spoil(state, path, value)
    torch.save(state, file)
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*optimizer\.pt"):
        resume(run, at(run, 4))


@pytest.mark.parametrize("damage", ["cut", "empty", "garbled", "dict", "list"])
def test_a_damaged_optimizer_without_hashes_is_damage_and_no_advice_of_torch(run, damage) -> None:
    file = without_hashes(at(run, 4))
    if damage in ("dict", "list"):
        torch.save({} if damage == "dict" else [1], file)
    elif damage == "garbled":
        content = bytearray(file.read_bytes())
        place = content.find(b"ema_updates")
        content[place - 3 : place + 60] = os.urandom(63)
        file.write_bytes(content)
    else:
        os.truncate(file, file.stat().st_size // 2 if damage == "cut" else 0)
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*optimizer\.pt .*--from-older") as error:
        resume(run, at(run, 4))
    assert "weights_only" not in str(error.value) and "fit" not in str(error.value)


# --------------------------------------------------------------------------------------------------- leftovers


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
@pytest.mark.parametrize("name", [".incomplete-x", ".incomplete-step_00000006", ".incomplete-deleting-step_00000002"])
def test_foreign_leftovers_stop_no_start_and_stay(run, tmp_path, kind, name) -> None:
    place = run / "checkpoints" / name
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    checkpoints.remove_leftovers()
    checkpoints.write(6, lambda folder: None, {})
    assert [path.name for path in checkpoints.all()] == ["step_00000006"] and os.path.lexists(place)
    assert (tmp_path / "elsewhere" / "precious").read_text() == "mine"


def test_a_checkpoint_that_was_moved_and_linked_loses_its_link_alone(run, tmp_path) -> None:
    at(run, 2).rename(tmp_path / "moved")
    at(run, 2).symlink_to(tmp_path / "moved")
    Checkpoints(run / "checkpoints", keep=2).write(6, lambda folder: None, {})
    assert not os.path.lexists(at(run, 2)) and (tmp_path / "moved" / "model.safetensors").is_file()


# -------------------------------------------------------------------------------------------------------- logs

LINES = [json.dumps({"step": step, "loss": 1.0}).encode() for step in (1, 2, 3, 4)]
BAD = {
    "zeros": b"\0" * 80,
    "not utf-8": b'{"step": 2, "x": "\xff\xfe"}',
    "list": b"[1]",
    "null": b"null",
    "no step": b'{"loss": 1}',
    "step null": b'{"step": null}',
    "step text": b'{"step": "2"}',
    "step true": b'{"step": true}',
    "cut": b'{"step": 2, "lo',
    "brackets": b"[" * 200_000,
}


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_damaged_line_of_the_log_costs_no_other(tmp_path, bad, place) -> None:
    log = tiny_trainer(tmp_path).log
    log.file.write_bytes(b"\n".join([*LINES[:place], bad, *LINES[place:]]) + b"\n")
    with pytest.warns(UserWarning, match="1 line could not be read"):
        log.truncate(3)
    log.write(4, {"loss": 2.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_log_that_cannot_be_cleaned_up_blocks_nothing(tmp_path, monkeypatch) -> None:
    log = tiny_trainer(tmp_path).log
    log.file.write_bytes(b"\n".join(LINES))

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match=r"may stand in .* twice"):
        log.truncate(2)


def test_half_a_line_is_taken_back_where_the_disk_becomes_full(tmp_path, monkeypatch) -> None:
    log = tiny_trainer(tmp_path).log
    log.write(1, {"loss": 1.0})
    before = log.file.read_bytes()

    class Short:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *unused):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, text):
            return self.file.write(text[:10])

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *arguments, **options: Short(opened(self, *arguments, **options)))
    log.write(2, {"loss": 2.0})
    monkeypatch.undo()
    assert log.file.read_bytes() == before
    log.write(3, {"loss": 3.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


# --------------------------------------------------------------------------------- data, rates, older records


class Files:
    """A set of files as `identity` sees it."""

    labels = ("a", "b")

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.files = root, [(name, "ab".index(name[0]), None) for name in names]


@pytest.fixture
def data(tmp_path) -> Path:
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "data" / label / f"{index}.mp4").write_bytes(f"{label}{index}".encode() * 5000)
    return tmp_path / "data"


NAMES = [f"{label}/{index}.mp4" for label in "ab" for index in range(3)]


@pytest.mark.parametrize("listed", [1000, 2])
def test_the_identity_of_data_is_that_of_their_files_and_not_of_their_place(
    data, tmp_path, monkeypatch, listed
) -> None:
    monkeypatch.setattr("eqm_video.data.identity.LISTED", listed)
    then = identity(Files(data, NAMES))
    copy = shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copy)  # other times too
    assert difference(then, json.loads(json.dumps(identity(Files(copy, NAMES[::-1]))))) is None
    named = "b/1.mp4" if listed == 1000 else "b"
    for change in (b"other", b"b1" * 4999 + b"zz", b"zz" + b"b1" * 4999):  # sizes, last bytes, first bytes
        (copy / "b" / "1.mp4").write_bytes(change)
        assert f"(changed: {named})" in difference(then, identity(Files(copy, NAMES)))
    (copy / "b" / "1.mp4").rename(copy / "b" / "9.mp4")
    other = identity(Files(copy, [*NAMES[:4], "b/9.mp4", NAMES[5]]))
    assert difference(then, other) is not None
    if listed == 1000:
        assert "gone: b/1.mp4; new: b/9.mp4" in difference(then, other)


def test_a_stretched_schedule_is_reported_with_both_rates() -> None:
    def train(*words: str):
        return load_config(None, [f"train.{word}" for word in ("steps=1000", "lr=1e-3", *words)]).train

    (note,) = note_rates(900, train("schedule=cosine"), train("schedule=cosine", "steps=2000"))
    assert "step 901 would have been 2.4e-05 and is 0.000577" in note and "1000 there, 2000 here" in note
    assert note_rates(900, train("schedule=linear"), train("schedule=linear", "steps=2000"))
    assert note_rates(900, train(), train("lr=2e-3")) and not note_rates(900, train(), train("steps=2000"))
    assert not note_rates(900, train("schedule=cosine"), train("schedule=cosine"))


def test_a_run_of_an_older_version_goes_on(tmp_path) -> None:
    """A checkpoint that was written before hashes and the identity of the data were part of the record."""
    from eqm_video.core.gamma import MixtureGamma

    shutil.copytree(OLD, tmp_path / "run" / "checkpoints")
    shutil.copy(OLD / "metrics.jsonl", tmp_path / "run")
    sizes = {"hidden_size": 8, "depth": 1, "num_heads": 1}
    options = {"steps": 4, "log_every": 3, "gamma": MixtureGamma(), "label_dropout": 0.3}
    trainer = tiny_trainer(tmp_path / "run", tiny_network(seed=9, **sizes), encode=encode, **options)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000002"
    record = read_record(checkpoint, "config", "data", "world_size")
    assert "files" not in record and "identity" not in record["data"]
    trainer.resume(checkpoint)
    assert trainer.step == 2 and trainer.run()
    from safetensors.torch import load_file

    for file, found in (("final", weights(trainer.network)), ("final_ema", trainer.ema.average)):
        for name, value in load_file(OLD / f"{file}.safetensors").items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)  # processors round differently
    old = [json.loads(line) for line in (OLD / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in read_metrics(tmp_path / "run")] == pytest.approx([line["loss"] for line in old])


def test_the_run_of_an_older_version_ends_with_the_very_weights_on_the_machine_that_wrote_it(tmp_path) -> None:
    straight = tiny_trainer(tmp_path / "straight", steps=4, save_every=2)
    straight.run()
    checkpoint = tmp_path / "straight" / "checkpoints" / "step_00000002"
    without_hashes(checkpoint)
    resumed = tiny_trainer(tmp_path / "resumed", tiny_network(seed=9), steps=4)
    resumed.resume(checkpoint)
    resumed.run()
    assert equal(weights(straight.network), weights(resumed.network))
    assert equal(straight.ema.average, resumed.ema.average)


def test_loading_says_another_architecture_apart_from_damage(run) -> None:
    trainer = tiny_trainer(run, tiny_network(depth=3), steps=4)
    with pytest.raises(UserError, match="does not fit this network"):
        load_state(at(run, 4), **trainer._state())
