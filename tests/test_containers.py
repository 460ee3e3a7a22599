"""Any file that is called a video: its name is a name, its content a video or nothing, damage changes no frame."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT, SHARED
from numbered import numbers, write_numbered

from eqm_video.data import packets, video
from eqm_video.data.datasets import look_at_video, open_data
from eqm_video.data.video import TOLERANCE, VideoDecodeError, probe, read_frames


@pytest.fixture(scope="session")
def cases() -> Path:
    if not (SHARED / "cases").is_dir():
        pytest.skip("needs the inputs in ../shared/cases, which this checkout does not have beside it")
    return SHARED / "cases"


# Names and formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["take:1.mp4", "pipe:1.mp4", "tcp:x.mp4", "concat:a.mp4", "-i.mp4", "%d.mp4", "é.mp4"])
def test_a_name_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_numbered(tmp_path / name, 12)
    monkeypatch.chdir(tmp_path)
    info = probe(name)
    for backend in ("decord", "pyav"):
        assert numbers(read_frames(name, [3, 11], backend, info=info)[0]) == [3, 11]
    assert len(open_data("videos", ".", frames=2, frame_interval=1, size=32)) == 1


def test_a_name_outside_utf_8_is_read_with_pyav(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff\xfe.mp4"))
    write_numbered(tmp_path / "a.mp4", 12).rename(path)
    info = probe(path)
    assert info.backend == "pyav"
    assert numbers(read_frames(path, [3, 11], info=info)[0]) == [3, 11]


LISTS = {
    "concat.mp4": "ffconcat version 1.0\nfile secret.avi\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.avi\n#EXT-X-ENDLIST\n",
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "dash.mp4": '<?xml version="1.0"?><MPD><Period><BaseURL>secret.avi</BaseURL></Period></MPD>',
    "playlist.avi": "[playlist]\nFile1=secret.avi\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_other_files_are_no_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_numbered(tmp_path / "secret.avi", 12, codec="mpeg4")
    (tmp_path / name).write_text(LISTS[name])
    monkeypatch.chdir(tmp_path)
    reason = "its content is of no format" if name in ("concat.mp4", "sdp.mp4") else "its content|Invalid data"
    with pytest.raises(VideoDecodeError, match=rf"{name}: cannot be read as a video \(({reason})"):
        probe(name)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("a.m4v", "libx264"), ("a.mpg", "mpeg1video"), ("a.mpeg", "mpeg2video"), ("a.ts", "libx264")),
        *(("a.mts", "libx264"), ("a.m2ts", "libx264"), ("a.3gp", "libx264"), ("a.flv", "libx264"), ("a.wmv", "wmv2")),
        *(("a.ogv", "libvpx"), ("a.mov", "prores_ks"), ("a.webm", "libvpx-vp9"), ("a.avi", "mjpeg")),
    ],
)
def test_every_usual_kind_of_file_is_read(tmp_path: Path, name: str, codec: str) -> None:
    pixels = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
    form = {".ogv": "ogg", ".m2ts": "mpegts", ".mts": "mpegts", ".mpeg": "mpeg", ".m4v": "mp4"}.get(Path(name).suffix)
    path = write_numbered(tmp_path / name, 20, codec=codec, pixel_format=pixels, size=(96, 128), container=form)
    info = probe(path)
    assert info.frames >= 19  # MPEG program streams drop a frame where they begin
    found = numbers(read_frames(path, [2, 9, info.frames - 1], info=info)[0])
    assert found[1] - found[0] == 7 and found[2] - found[1] == info.frames - 10


def test_transport_streams_are_sought_and_not_read_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_numbered(tmp_path / "a.ts", options={"g": "10", "bf": "2", "sc_threshold": "0"})

    def forbidden(self: packets.Pictures) -> None:
        raise AssertionError("read from the start")

    monkeypatch.setattr(packets.Pictures, "rewind", forbidden)
    assert probe(path).frames == 60
    assert numbers(read_frames(path, [3, 25, 30, 59], "pyav")[0]) == [3, 25, 30, 59]


def test_the_reader_needs_no_torch() -> None:
    code = "import sys, eqm_video.data.video; print([m for m in ('torch', 'av', 'decord') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


# Damage --------------------------------------------------------------------------------------------------------------


def test_an_implausible_length_never_reaches_decord(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise AssertionError("decord was asked")

    monkeypatch.setattr(video, "_decord", forbidden)
    with pytest.raises(VideoDecodeError, match=r"avi_length_max.avi: truncated"):
        look_at_video(cases / "avi_length_max.avi")


def differs(path: Path, rng: random.Random) -> int:
    """The largest difference between PyAV's frames and those that training gets; 0 for a file that is refused."""
    try:
        info = look_at_video(path)
    except VideoDecodeError:
        return 0
    if info.backend == "pyav":
        return 0
    worst = 0
    for _ in range(4):
        first = rng.randrange(info.frames)
        wanted = [min(first + 2 * k, info.frames - 1) for k in range(8)]
        taken = read_frames(path, wanted, info=info)[0].astype(int)
        worst = max(worst, int(np.abs(taken - read_frames(path, wanted, "pyav")[0]).max()))
    return worst


def test_a_run_of_ff_bytes_is_read_with_pyav(cases: Path) -> None:
    info = probe(cases / "run_of_ff_bytes.avi")
    assert info.backend == "pyav" and "damaged" in info.notes
    assert np.array_equal(
        *(read_frames(cases / "run_of_ff_bytes.avi", range(58), b, info=info)[0] for b in (None, "pyav"))
    )


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A copy with one kind of damage: bits flipped, a run of equal bytes, a part lost or taken from elsewhere."""
    copy, place = bytearray(content), rng.randrange(min(4000, len(content) // 4), len(content))
    run = rng.randrange(4, 600)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randrange(1, 60)):
                copy[rng.randrange(2000, len(copy))] ^= 1 << rng.randrange(8)
        case 1:
            copy[place : place + run] = bytes([rng.choice((0, 255))]) * len(copy[place : place + run])
        case 2:
            del copy[place : place + run]
        case 3:
            source = rng.randrange(len(copy) - 600)
            copy[place : place + 300] = copy[source : source + 300]
        case _:
            copy[place] = rng.randrange(256)
    return bytes(copy)


def test_damaged_files_show_the_frames_of_the_reference(real: Path, tmp_path: Path, monkeypatch) -> None:
    """As many as EQM_FUZZ says, 60 otherwise; decord is to read the whole ones."""
    monkeypatch.setattr(video, "SHORT", 0)
    sources = [*sorted((real / "actions").glob("*/*.avi"))[::8], real / "videos" / "v_Basketball_g01_c01.avi"]
    contents, readers = [(path.suffix, path.read_bytes()) for path in sources], set()
    for number in range(int(os.environ.get("EQM_FUZZ", "60"))):
        rng = random.Random(number)
        suffix, content = rng.choice(contents)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damaged(content, rng))
        assert differs(path, rng) <= TOLERANCE, f"number {number}"
        try:
            readers.add(probe(path).backend)
        except VideoDecodeError:
            readers.add("none")
        path.unlink()
    if {probe(path).backend for path in sources} == {"decord"}:
        assert {"decord", "pyav"} <= readers


def test_a_lost_chunk_of_an_avi_moves_no_frame(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.avi", codec="mjpeg", pixel_format="yuvj420p")
    content, lost = bytearray(path.read_bytes()), 30
    place = content.index(b"movi")
    for _ in range(lost + 1):
        place = content.index(b"00dc", place + 1)
    content[place : place + 4] = b"zzzz"  # the index counts it still
    path.write_bytes(content)
    info = probe(path)
    left = [number for number in range(60) if number != lost]
    assert info.frames == 59 and info.backend == "pyav"
    for wanted in ([0, 29, 30, 31], [58], [45, 40]):
        assert numbers(read_frames(path, wanted, info=info)[0]) == [left[k] for k in wanted]


# Tables and times ----------------------------------------------------------------------------------------------------


def test_packets_are_listed_once_while_a_file_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    table = packets._table
    monkeypatch.setattr(packets, "_table", lambda *a: (listed.append(1), table(*a))[1])
    path = write_numbered(tmp_path / "a.mp4", 12)
    info = probe(path)
    for backend in ("pyav", "decord"):
        read_frames(path, [3], backend, info=info)
    assert len(listed) == 1
    write_numbered(path, 13)
    assert probe(path).frames == 13 and len(listed) == 2


def test_tables_take_no_more_memory_than_they_may(tmp_path: Path) -> None:
    tables = packets.Tables(most=3000)
    paths = [write_numbered(tmp_path / f"{k}.mp4", 60) for k in range(4)]
    for path in paths:
        assert len(tables.of(path).times) == 60
    assert tables._bytes <= 3000 and 1 <= len(tables._kept) < 4
    assert tables.of(paths[-1]) is tables.of(paths[-1])


def test_a_rate_that_changes_is_not_constant(cases: Path, tmp_path: Path) -> None:
    path = cases / "rate_changes_16_then_30fps.mp4"
    info = probe(path)
    assert not info.constant_rate
    (tmp_path / "a.mp4").symlink_to(path)
    data = open_data("videos", tmp_path, frames=8, frame_interval=1, size=32)
    assert data.clip(0, start=0).times[-1] == pytest.approx(7 / 16, abs=2e-3)
    assert data.clip(0, start=50).times[-1] == pytest.approx(7 / 30, abs=2e-3)


@pytest.mark.parametrize("drift", [0.4, 0.6])
def test_half_a_frame_of_drift_is_the_limit(tmp_path: Path, drift: float) -> None:
    ticks = np.arange(41) * 100
    ticks[20:] += round(2 * 100 * drift)  # a step in the middle: half of it on either side of the average rate's line
    path = write_numbered(tmp_path / "a.mp4", 41, fps=2500, ticks=ticks)
    worst = np.abs(ticks - ticks[-1] * np.arange(41) / 40).max() / (ticks[-1] / 40)
    assert probe(path).constant_rate == (worst <= 0.5) == (drift == 0.4)


def test_times_rounded_to_ticks_are_constant(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", 60, fps=30)  # Matroska rounds to milliseconds
    info = probe(path)
    assert info.constant_rate and info.fps == 30


def test_times_go_on_rising_while_the_last_frame_of_an_irregular_video_repeats(tmp_path: Path) -> None:
    ticks = np.cumsum([0, 1, 4, 1, 1, 6, 1, 2])
    write_numbered(tmp_path / "a.mp4", 8, ticks=ticks)
    write_numbered(tmp_path / "b.mp4", 40)  # long enough for a clip
    data = open_data("videos", tmp_path, frames=6, frame_interval=2, size=32, short="repeat")
    info = data.files[0][2]
    assert not info.constant_rate and info.frames == 8
    expected = [*(ticks[[0, 2, 4, 6]] / 25), ticks[7] / 25 + 1 / info.fps, ticks[7] / 25 + 3 / info.fps]
    np.testing.assert_allclose(data.clip(0, start=0).times, expected, atol=1e-3)
    stored = data.window(0, 0, data.seconds(0))[1]
    np.testing.assert_allclose(stored, expected, atol=1e-3)


def test_seconds_are_the_files_whichever_reader_decodes(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.avi", 30, options={"g": "10"}, b_frames=0)  # H.264, where decord gives zeros
    info = probe(path)
    for backend in (None, "pyav"):
        np.testing.assert_allclose(read_frames(path, [5, 20], backend, info=info)[1], [0.2, 0.8], atol=1e-6)


def test_empty_packets_end_nothing(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.avi", codec="mpeg4", options={"g": "12"})
    with av.open(str(path)) as container:
        count = sum(1 for packet in container.demux(video=0) if packet.size)
    assert probe(path).frames == count == 60
