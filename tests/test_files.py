"""Files are written whole or not at all, and leftovers of killed processes are deleted."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from eqm_video.errors import UserError
from eqm_video.system import files
from eqm_video.training.checkpoint import replace_folder


def test_files_appear_whole_or_not_at_all(tmp_path):
    files.write_text(tmp_path / "a.txt", "old")

    def crash(aside):
        aside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(tmp_path / "a.txt", crash)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "a folder that you may write to")],
)
def test_a_failed_write_says_what_helps_and_leaves_nothing(tmp_path, number, says):
    def fail(aside):
        aside.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=says) as caught:
        files.write_file(tmp_path / "a.txt", fail)
    assert not list(tmp_path.iterdir())
    assert number == errno.EROFS or "may write" not in str(caught.value)


def test_files_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    files.write_text(tmp_path / "a.txt", "new")
    assert done == [str(files.aside_of(tmp_path / "a.txt")), str(tmp_path)]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_weights_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    usual, weights = (tmp_path / "plain").stat().st_mode, {"x": np.zeros(2)}
    save_file(weights, tmp_path / "private")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600  # why `finish` is needed
    files.write_file(tmp_path / "file", lambda aside: save_file(weights, aside))
    with files.writing_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        save_file(weights, folder / "inner" / "file")
    replace_folder(tmp_path / "checkpoint", lambda partial: save_file(weights, partial / "file"))
    for path in (tmp_path / "file", tmp_path / "folder" / "inner" / "file", tmp_path / "checkpoint" / "file"):
        assert path.stat().st_mode == usual, path


def test_a_disk_without_permissions_keeps_the_file(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.Path, "chmod", refuse)
    number = errno.EPERM
    files.write_file(tmp_path / "file", lambda aside: save_file({"x": np.zeros(2)}, aside))
    assert (tmp_path / "file").is_file()
    number = errno.EIO
    with pytest.raises(UserError):
        files.write_file(tmp_path / "other", lambda aside: save_file({"x": np.zeros(2)}, aside))
    assert not (tmp_path / "other").exists()


def test_names_that_are_not_utf8_come_back(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    files.write_json(tmp_path / "a.json", {name: [name, "é"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: [name, "é"]}
    files.write_text(tmp_path / "a.md", name)
    assert (tmp_path / "a.md").read_bytes() == b"caf\xe9.mp4"
    files.write_json(tmp_path / "a.json", {"é": 1}, indent=1)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "é": 1\n}\n'


def test_asides_of_dead_processes_go_and_nothing_else(tmp_path):
    mine = files.aside_of(tmp_path / "a.gif").name
    host = mine.split(".")[3]
    dead = [mine, f".a.gif.{host}.{2**22 + 1}.aside", ".a.gif.aside", ".a.gif.1234567.tmp"]
    kept = [f".a.gif.{host}.{os.getppid()}.aside", ".a.gif.elsewhere.1.aside", ".mine.aside", ".a.gif", "a.gif.aside"]
    for name in (*dead, *kept):
        (tmp_path / name).write_text("half")
    (tmp_path / f".a.gif.{host}.1.aside").mkdir()
    (tmp_path / ".a.gif.9.tmp").symlink_to("elsewhere")
    files.remove_asides(tmp_path, lambda name: name == "a.gif")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*kept, f".a.gif.{host}.1.aside", ".a.gif.9.tmp"}
