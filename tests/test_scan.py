"""A file can neither end a run nor vanish: scans in child processes, folders with everything in them, odd names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numbered import numbers, write_numbered
from PIL import Image

from eqm_video.data import children, entries, layout
from eqm_video.data import scan as index_module
from eqm_video.data.datasets import look_at_video, open_data
from eqm_video.data.image import ImageInfo
from eqm_video.data.scan import examine
from eqm_video.data.source import kind_of
from eqm_video.data.video import VideoDecodeError, VideoInfo
from eqm_video.errors import UserError
from eqm_video.names import as_label, shown

SIZE = (32, 48)
# A look that does what a file's name says, in place of a decoder.
BOOT = """
import ctypes, json, os, sys, time
sys.path[:] = json.loads(sys.argv[1])
from eqm_video.data import looks
from eqm_video.data.video import VideoDecodeError, VideoInfo
def look(path):
    word = path.stem
    if word == "abort": os.abort()
    if word == "segv": ctypes.string_at(0)
    if word == "exit": os._exit(0)
    if word == "hang": time.sleep(1000)
    if word == "bug": raise UnicodeEncodeError("utf-8", "x", 0, 1, "no such thing")
    if word == "bad": raise VideoDecodeError(f"{path}: is bad")
    if word == "once" and not path.with_suffix(".was").exists():
        path.with_suffix(".was").touch()
        os.abort()
    print("noise on standard output", flush=True)
    return VideoInfo(9, 25.0, 4, 6)
looks.LOOKS["video"] = look
looks.serve()
"""


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Children that do what the names of files say."""
    children._idle.close()
    monkeypatch.setattr(children, "BOOT", BOOT)
    yield
    children._idle.close()


@pytest.fixture(scope="module")
def cases(root: Path) -> Path:
    folder = root.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("needs the small inputs in ../shared/cases, which this checkout does not have beside it")
    return folder


def unpacked(cases: Path, name: str, to: Path) -> Path:
    with tarfile.open(cases / f"{name}.tar.gz") as archive:
        archive.extractall(to, filter="fully_trusted")
    return next(to.iterdir())


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def open_videos(root: Path, **options: Any) -> Any:
    return open_data("videos", root, **{"frames": 4, "frame_interval": 1, "size": SIZE, **options})


def video(path: Path, frames: int = 12, **options: Any) -> Path:
    return write_numbered(path, frames, **options)


# ---- looks whose death is survived -----------------------------------------------------------------------------------


def test_files_that_end_the_decoder_are_named_and_the_others_go_on(tmp_path: Path, pretending: None) -> None:
    names = ["a.avi", "abort.avi", "b.avi", "segv.avi", "exit.avi", "bug.avi", "bad.avi", "once.avi", "c.avi"]
    infos, reasons = examine(touch(tmp_path, *names), names, "video", VideoInfo)
    assert set(infos) == {"a.avi", "b.avi", "c.avi", "once.avi"} and infos["c.avi"].frames == 9
    assert list(reasons) == ["abort.avi", "segv.avi", "exit.avi", "bug.avi", "bad.avi"]
    assert reasons["abort.avi"] == "ends the decoder: killed by SIGABRT"
    assert reasons["segv.avi"] == "ends the decoder: killed by SIGSEGV"
    assert reasons["exit.avi"] == "ends the decoder: exit status 0"
    assert reasons["bug.avi"].startswith("the decoder fails (UnicodeEncodeError: ") and reasons["bad.avi"] == "is bad"


def test_a_file_that_takes_too_long_is_named(
    tmp_path: Path, pretending: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(children, "PATIENCE", 0.5)
    monkeypatch.setattr(children, "SECONDS", 3.0)
    names = [*(f"{k}.avi" for k in range(5)), "hang.avi", *(f"{k}.avi" for k in range(5, 10))]
    start = time.monotonic()
    infos, reasons = examine(touch(tmp_path, *names), names, "video", VideoInfo)
    assert len(infos) == 10 and reasons == {"hang.avi": "took longer than 3 s to look at"}
    assert time.monotonic() - start < 60
    assert "hang.avi takes long to look at; it is given 3 s" in capsys.readouterr().err


def test_a_child_that_cannot_be_ended_is_left_behind(
    tmp_path: Path, pretending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("PATIENCE", 0.2), ("SECONDS", 2.0), ("GRACE", 0.5)):
        monkeypatch.setattr(children, name, seconds)
    kill, held = subprocess.Popen.kill, []
    # As where a network disk does not answer.
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: held.append(process))
    names = ["hang.avi", *(f"{k}.avi" for k in range(4))]
    infos, reasons = examine(touch(tmp_path, *names), names, "video", VideoInfo)
    assert len(infos) == 4 and set(reasons) == {"hang.avi"} and held
    for process in set(held):
        kill(process)


def test_long_films_are_given_more_time(tmp_path: Path) -> None:
    with open(tmp_path / "film.avi", "wb") as file:
        file.truncate(4_000_000_000)
    assert children.time_for(tmp_path / "film.avi") == 460
    assert children.time_for(tmp_path / "none.avi") == 60


def test_a_child_that_does_not_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children._idle.close()
    monkeypatch.setattr(children, "BOOT", "raise SystemExit(3)")
    with pytest.raises(UserError, match="the process that looks at files does not start: exit status 3"):
        examine(touch(tmp_path, "a.avi"), ["a.avi"], "video", VideoInfo)


def test_one_child_serves_many_sets_and_signals_are_not_for_it(tmp_path: Path, pretending: None) -> None:
    touch(tmp_path, "a.avi")
    examine(tmp_path, ["a.avi"], "video", VideoInfo)
    first = children._idle._child
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        first.process.send_signal(number)  # of a terminal or a scheduler, to the whole group
    examine(tmp_path, ["a.avi"], "video", VideoInfo)
    assert children._idle._child is first and first.process.poll() is None
    first.process.kill()
    first.process.wait()
    assert len(examine(tmp_path, ["a.avi"], "video", VideoInfo)[0]) == 1


def test_a_forked_process_takes_no_child_of_its_parent(tmp_path: Path, pretending: None) -> None:
    touch(tmp_path, "a.avi")
    examine(tmp_path, ["a.avi"], "video", VideoInfo)
    child = children._idle._child
    if (pid := os.fork()) == 0:
        os._exit(0 if children._idle._child is None else 1)
    assert os.waitpid(pid, 0)[1] == 0 and children._idle._child is child


def test_nothing_is_started_when_the_index_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video(tmp_path / "set" / "a.mp4")
    first = open_videos(tmp_path / "set", index_path=tmp_path / "index.json")
    children._idle.close()
    monkeypatch.setattr(children, "Child", None)
    assert open_videos(tmp_path / "set", index_path=tmp_path / "index.json").files == first.files


def test_a_child_goes_when_its_parent_is_gone(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from eqm_video.data import children\n"
        "list(children.look_at(Path(sys.argv[1]), ['a.avi'], 'video'))\n"
        "print(children._idle._child.process.pid, flush=True); os._exit(0)"
    )
    touch(tmp_path, "a.avi")
    words = [sys.executable, "-c", code, str(tmp_path)]  # no script that a child could import
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True)
    for _ in range(100):
        if not Path(f"/proc/{int(done.stdout)}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child is still there")


def test_the_cost_of_an_inspection_is_kept(tmp_path: Path, pretending: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names, path = ["a.avi", "abort.avi", "bad.avi"], tmp_path / "index.json"
    touch(tmp_path, *names)
    looked: list[str] = []
    look_at = index_module.look_at

    def counting(root: Path, pending: list[str], look: str) -> Any:
        looked.extend(pending)
        return look_at(root, pending, look)

    monkeypatch.setattr(index_module, "look_at", counting)
    first = examine(tmp_path, names, "video", VideoInfo, path)
    assert looked == names
    assert examine(tmp_path, names, "video", VideoInfo, path) == first and looked[3:] == ["bad.avi"]
    assert examine(tmp_path, names, "video", VideoInfo, path, again=False) == first and len(looked) == 4
    (tmp_path / "abort.avi").write_bytes(b"longer")
    examine(tmp_path, names, "video", VideoInfo, path, again=False)
    assert looked[4:] == ["abort.avi"]


def test_an_interrupted_scan_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        video(tmp_path / f"{name}.mp4")
    look_at = index_module.look_at

    def interrupted(root: Path, names: list[str], look: str) -> Any:
        yield next(look_at(root, names, look))
        raise KeyboardInterrupt

    monkeypatch.setattr(index_module, "look_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_videos(tmp_path, index_path=tmp_path / "index.json")
    assert len(json.loads((tmp_path / "index.json").read_text())["files"]) == 1
    assert not [worker for worker in children.threading.enumerate() if isinstance(worker, children._Worker)]


def test_the_index_is_saved_on_the_way(tmp_path: Path, pretending: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.avi", "b.avi"]
    monkeypatch.setattr(index_module, "SAVED", 0.0)
    saves: list[int] = []
    save = index_module.Index.save
    monkeypatch.setattr(index_module.Index, "save", lambda index: (saves.append(len(index.files)), save(index)))
    examine(touch(tmp_path, *names), names, "video", VideoInfo, tmp_path / "index.json")
    assert saves[0] == 1 and saves[-1] == 2


def test_the_declared_length_of_an_avi_cannot_end_a_run(cases: Path, tmp_path: Path) -> None:
    shutil.copy(cases / "avi_length_max.avi", tmp_path)
    video(tmp_path / "good.mp4")
    data = open_videos(tmp_path)
    assert [name for name, _, _ in data.files] == ["good.mp4"] and list(data.report.unreadable) == [
        "avi_length_max.avi"
    ]
    with pytest.raises(VideoDecodeError, match=r"avi_length_max.avi: "):  # as --start-from does
        look_at_video(cases / "avi_length_max.avi")


# ---- what lies in a folder -------------------------------------------------------------------------------------------


def test_everything_that_is_passed_over_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    video(root / "Run" / "a.MP4")
    touch(root, "Run/b.txt", "Run/c.TXT", "Run/d", "Run/.DS_Store", "Run/._a.MP4", "Run/Thumbs.db", "Run/.h.mp4")
    touch(root, "Run/deep/x.mp4", "Bad/x.mp4", "Deep/er/x.mp4", "notes.md", "film.mp4/inner.txt", "lost+found/x.mp4")
    (root / "Empty").mkdir()
    (root / "Run" / "gone.mp4").symlink_to("nowhere.mp4")
    (root / "Gone").symlink_to(tmp_path / "nowhere")
    (root / "Run" / "one.mp4").symlink_to("two.mp4")
    (root / "Run" / "two.mp4").symlink_to("one.mp4")
    (root / "Run" / "zero.mp4").symlink_to("/dev/zero")
    (root / "self").symlink_to(root)
    os.mkfifo(root / "Run" / "pipe.mp4")
    (root / "Run" / "box.mp4").mkdir()
    monkeypatch.chdir(root / "Run")  # paths of sockets are short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.mp4")
    scandir = os.scandir

    def forbidding(path: Any) -> Any:
        if Path(path).name == "lost+found":  # root, as tests may run, is let in everywhere
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(entries.os, "scandir", forbidding)
    data = open_videos(root, report_path=tmp_path / "report.json")
    assert [name for name, _, _ in data.files] == ["Run/a.MP4"] and data.labels == ["Run"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed_over"] == {
        ".md": ["notes.md"],
        ".txt": ["Run/b.txt", "Run/c.TXT"],
        "FIFO": ["Run/pipe.mp4"],
        "dangling link": ["Gone", "Run/gone.mp4"],
        "device": ["Run/zero.mp4"],
        "folder": ["film.mp4", "Run/box.mp4", "Run/deep"],
        "hidden": ["Run/.h.mp4"],
        "link in a circle": ["Run/one.mp4", "Run/two.mp4"],
        "link to a folder that it lies in": ["self"],
        "no extension": ["Run/d"],
        "socket": ["Run/socket.mp4"],
        "unreadable folder": ["lost+found"],
    }
    assert report["unlabelled"] == ["Bad", "Empty"] and report["ignored"] == ["Deep"]
    summary = data.report.summary()
    assert "17 passed over: .md 1 (notes.md), .txt 2 (Run/b.txt, Run/c.TXT), FIFO 1" in summary
    assert "class folders without a file that can be used, so no label: Bad, Empty" in summary


@pytest.mark.parametrize(("ending", "codec"), [
    (".m4v", "libx264"), (".MPG", "mpeg2video"), (".mpeg", "mpeg1video"), (".ts", "libx264"), (".MTS", "libx264"),
    (".m2ts", "mpeg2video"), (".3gp", "mpeg4"), (".flv", "flv1"), (".wmv", "wmv2"), (".ogv", "theora"),
])  # fmt: skip
def test_what_the_decoder_reads_is_used(ending: str, codec: str, tmp_path: Path) -> None:
    plain = ".ts" if ending.lower() in (".mts", ".m2ts") else ending.lower()
    try:
        path = video(tmp_path / f"plain{plain}", 20, codec=codec)
    except ValueError as error:
        pytest.skip(f"this build of FFmpeg writes no {codec}: {error}")
    path.rename(tmp_path / f"clip{ending}")
    data = open_videos(tmp_path)
    assert len(data) == 1, data.report.summary()
    for start in (0, 7, data.length(0) - 4):
        clip = data.clip(0, start=start)
        assert numbers(clip.pixels.permute(0, 2, 3, 1).numpy()) == [start, start + 1, start + 2, start + 3]
    assert data.length(0) >= 19


@pytest.mark.parametrize("ending", [".jfif", ".tif", ".TIFF", ".gif"])
def test_images_of_further_kinds_are_used(ending: str, tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    kind = {".jfif": "jpeg", ".tif": "tiff", ".TIFF": "tiff", ".gif": "gif"}[ending]
    more = {"save_all": True, "append_images": [blue]} if kind in ("gif", "tiff") else {}
    red.save(tmp_path / f"a{ending}", kind, **more)
    data = open_data("images", tmp_path, frames=1, size=16)
    pixels = data.clip(0).pixels[0].float().mean(dim=(1, 2))
    assert pixels[0] > 240 and pixels[2] < 10  # the first frame


def test_previews_beside_videos_are_no_second_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.gif")
    assert kind_of(tmp_path) == "videos"
    (tmp_path / "a.mp4").unlink()
    assert kind_of(tmp_path) == "images"
    touch(tmp_path, "a.mp4", "b.png")
    with pytest.raises(UserError, match="holds videos and images"):
        kind_of(tmp_path)


def test_an_unusable_folder_is_refused_with_its_content(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.xyz")
    with pytest.raises(UserError, match=r"there are no videos in .*; there are: .txt 1 \(a.txt\), .xyz 1 \(b.xyz\)"):
        open_videos(tmp_path)


@pytest.mark.parametrize("kind", ["videos", "images"])
def test_a_folder_that_may_not_be_read_is_named_itself(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(layout.os, "scandir", forbidden)
    with pytest.raises(UserError, match=rf"^the data folder {tmp_path} cannot be read \(Permission denied\)"):
        open_data(kind, tmp_path, frames=1)
    monkeypatch.undo()
    monkeypatch.setattr(layout.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"^the data folder {tmp_path} cannot be entered"):
        open_data(kind, tmp_path, frames=1)


def test_names_with_colons_are_files_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["12:30:05.avi", "concat:1.avi", "http:x.avi", "pipe:1.avi"]
    for name in names:
        video(tmp_path / "plain.avi", codec="mpeg4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    data = open_videos(Path("."))
    assert [name for name, _, _ in data.files] == names and data.report.root == "."
    for index in range(4):
        assert numbers(data.clip(index, start=2).pixels.permute(0, 2, 3, 1).numpy()) == [2, 3, 4, 5]


def test_the_cases_of_folders(cases: Path, tmp_path: Path) -> None:
    data = open_videos(unpacked(cases, "folder_with_dangling_links", tmp_path / "1"))
    assert data.labels == ["A", "B"] and data.report.passed_over == {"dangling link": ["C", "A/3.mp4", "A/4.mp4"]}
    data = open_videos(unpacked(cases, "class_of_m4v_mpg_ts_flv_3gp_ogv_gif_only", tmp_path / "2"))
    assert data.labels == ["Jump", "Run"] and len(data) == 9 and data.report.passed_over == {".gif": ["Jump/x.gif"]}
    assert [data.clip(index).pixels.shape[0] for index in range(9)] == [4] * 9
    data = open_videos(unpacked(cases, "unreadable_class_keeps_its_label", tmp_path / "3"))
    assert data.labels == ["A", "B"] and [label for _, label, _ in data.files] == [0, 1]
    assert data.report.unlabelled == ["C_empty", "D_bad"] and list(data.report.unreadable) == ["D_bad/x.mp4"]
    assert open_videos(unpacked(cases, "class_folder_name_NFD", tmp_path / "4")).labels == ["Caf\u00e9", "Tea"]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_of_any_bytes_work_from_the_folder_to_the_report(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unpacked(cases, "folder_with_non_utf8_file_name", tmp_path)
    (root / "B").rename(root / os.fsdecode(b"Fu\xdfball\n2"))
    index, report = tmp_path / "index.json", tmp_path / "report.json"
    touch(root, "A/" + os.fsdecode(b"b\xff.avi"))
    data = open_videos(root, index_path=index, report_path=report)
    assert data.labels == ["A", r"Fu\xdfball\n2"] and len(data) == 3
    assert {data.clip(k).pixels.shape[0] for k in range(3)} == {4}
    assert open_videos(root, index_path=index).files == data.files
    names = set(json.loads(index.read_text())["files"])
    assert os.fsdecode(b"A/caf\xe9.mp4") in names and {os.fsencode(name) for name in names} >= {b"A/caf\xe9.mp4"}
    assert os.fsdecode(b"A/b\xff.avi") in json.loads(report.read_text())["unreadable"]
    data.report.summary().encode("utf-8")  # as a terminal does
    assert r"A/b\xff.avi (" in data.report.summary()


@pytest.mark.parametrize("environment", [
    {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C.UTF-8"},
])  # fmt: skip
def test_labels_are_the_same_in_every_locale(environment: dict[str, str], tmp_path: Path) -> None:
    for name in (b"T\xc3\xbcr", b"Caf\xe9", "Cafe\u0301".encode()):
        video(tmp_path / os.fsdecode(name) / "a.mp4")
    code = (
        "import sys; from eqm_video.data.datasets import open_data\n"
        "data = open_data('videos', sys.argv[1], frames=2, frame_interval=1, size=16)\n"
        "print(ascii(data.labels), len(data), data.clip(2).pixels.shape[0])"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.stdout.strip() == r"['Caf\xe9', 'Caf\\xe9', 'T\xfcr'] 3 2", done.stderr


def test_names_as_text() -> None:
    assert shown("plain \u00fc \U0001f600") == "plain \u00fc \U0001f600"
    assert shown("a\nb\x07\u2028") == r"a\nb\x07\u2028" and shown("\ud800") == r"\ud800"
    assert shown(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert as_label("Cafe\u0301") == "Caf\u00e9" == as_label("Caf\u00e9") and as_label("Run ") == "Run "


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("Cafe\u0301", "Caf\u00e9"):
        video(tmp_path / name / "a.mp4")
    with pytest.raises(UserError, match=r"two class folders called Caf\u00e9, stored as 'Cafe\\u0301' and 'Caf\\xe9'"):
        open_videos(tmp_path)


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_official_lists_keep_their_numbers_and_untrained_labels_are_named(tmp_path: Path) -> None:
    video(tmp_path / "Run" / "a.mp4")
    touch(tmp_path, "Jump/bad.mp4")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "classInd.txt").write_text("1 Jump\n2 Run\n3 Swim\n")
    (tmp_path / "splits" / "trainlist01.txt").write_text("Run/a.mp4\nJump/bad.mp4\n")
    for split in ("train", None):
        data = open_videos(tmp_path, split=split)
        assert data.labels == ["Jump", "Run", "Swim"] and [label for _, label, _ in data.files] == [1]
        assert data.report.untrained == ["Jump", "Swim"] and not data.report.unlabelled
        assert "labels without a file, so never trained: Jump, Swim" in data.report.summary()
        assert not data.report.passed_over


def test_classes_whose_videos_are_all_skipped_have_no_label(tmp_path: Path) -> None:
    video(tmp_path / "Long" / "a.mp4", 20)
    video(tmp_path / "Short" / "a.mp4", 5)
    assert open_videos(tmp_path, frames=10).labels == ["Long", "Short"]
    data = open_videos(tmp_path, frames=10, short="skip")
    assert data.labels == ["Long"] and data.report.unlabelled == ["Short"]


def test_notes_on_pixels_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    found = {"a.png": ImageInfo(8, 8, ("transparency",)), "b.png": ImageInfo(8, 8, ("transparency", "16-bit grey"))}
    monkeypatch.setattr("eqm_video.data.datasets.examine", lambda *unused: (found, {}))
    report = open_data("images", tmp_path, frames=1, size=8).report
    assert report.notes == {"transparency": ["a.png", "b.png"], "16-bit grey": ["b.png"]}
    assert "unusual pixels: transparency 2 (a.png, b.png), 16-bit grey 1 (b.png)" in report.summary()
