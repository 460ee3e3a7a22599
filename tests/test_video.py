"""Reading videos: exactly the requested frames, from both readers, and a sentence for a file that cannot be read."""

from __future__ import annotations

import builtins
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered import numbers, write_numbered

from eqm_video.data import colour, packets, video
from eqm_video.data.video import BACKENDS, VideoDecodeError, probe, read_frames

REAL = {  # name: frames, fps, (height, width), frames in the header, difference allowed between the readers
    "v_Basketball_g01_c01.avi": (141, 30000 / 1001, (240, 320), 141, 2),
    "abseiling_k400.mp4": (250, 25.0, (256, 454), 250, 0),
    "flipping_a_pancake.mkv": (310, 30.0, (240, 426), 0, 0),
}
FORMATS: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "one_keyframe.mp4": {"options": {"g": "1000"}},
    "keyframes.mov": {"options": {"g": "7"}},
    "keyframes.mkv": {"options": {"g": "7"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "every_frame.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}},
    "irregular.mp4": {"ticks": np.cumsum([0, *np.random.default_rng(0).integers(1, 5, 59)])},
    "late.mkv": {"ticks": np.arange(60) + 50},
}
# decord returns other frames of these, or none: measured with decord 0.6
HARD: dict[str, dict[str, Any]] = {
    "open_groups.mp4": {"options": {"g": "12", "x264-params": "open-gop=1:bframes=3:b-adapt=0"}, "frames": 52},
    "b_frames.mp4": {"codec": "mpeg4", "options": {"g": "12"}, "b_frames": 2},
    "b_frames.avi": {"codec": "mpeg4", "options": {"g": "12"}, "b_frames": 2},
    "h264.avi": {"options": {"g": "12"}},
    "ten_bits.mp4": {"pixel_format": "yuv420p10le"},
    "turned.mkv": {"rotation": 180},
    "turned.mp4": {"rotation": 90, "size": (48, 64)},  # it refuses some widths, once rotated
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, options in {**FORMATS, **HARD}.items():
        write_numbered(folder / name, **options)
    return folder


def decode_all(path: Path) -> np.ndarray:
    """The whole file in order, by a loop without any seek."""
    with av.open(str(path)) as container:
        frames = [np.rot90(f.to_ndarray(format="rgb24"), round(f.rotation / 90)) for f in container.decode(video=0)]
    return np.stack(frames)


def requests(frames: int, count: int = 12) -> list[list[int]]:
    """Single frames, windows and unordered picks with repeats, the ends included."""
    rng = random.Random(0)
    windows = [[min(first + 3 * k, frames - 1) for k in range(8)] for first in rng.sample(range(frames), count)]
    picks = [[rng.randrange(frames) for _ in range(5)] for _ in range(count)]
    return [[0], [frames - 1], [frames - 2], [frames - 1, 0], *windows, *picks]


@pytest.mark.parametrize("name", FORMATS)
def test_both_readers_give_exactly_the_requested_frames(folder: Path, name: str) -> None:
    info = probe(folder / name)
    assert (info.frames, info.height, info.width) == (60, 64, 96)
    assert info.backend == ("pyav" if name.endswith(".avi") else "decord")  # these have few frames to a keyframe
    info = replace(info, backend="decord")
    whole = decode_all(folder / name)
    for wanted in requests(60):
        pyav, pyav_seconds = read_frames(folder / name, wanted, "pyav")
        decord, decord_seconds = read_frames(folder / name, wanted, "decord", info=info)
        assert numbers(pyav) == wanted
        assert np.abs(pyav.astype(int) - whole[wanted]).max() == 0
        assert np.abs(decord.astype(int) - whole[wanted]).max() <= 2
        assert np.allclose(pyav_seconds, decord_seconds, atol=1e-4)


@pytest.mark.parametrize("name", HARD)
def test_files_that_decord_misreads_are_left_to_pyav(folder: Path, name: str) -> None:
    info = probe(folder / name)
    assert info.frames == HARD[name].get("frames", 60)
    assert info.backend == "pyav"
    with pytest.raises(VideoDecodeError, match="not exact on this file"):
        read_frames(folder / name, [0], "decord", info=info)
    whole = decode_all(folder / name)
    for wanted in requests(info.frames, 6):
        frames, seconds = read_frames(folder / name, wanted, info=info)
        assert np.array_equal(frames, whole[wanted])
        assert np.allclose(seconds, np.array(wanted) / 25, atol=1e-6)


@pytest.mark.parametrize("name", REAL)
def test_real_clips_read_the_same_with_both(real: Path, name: str) -> None:
    frames, fps, size, declared, allowed = REAL[name]
    path = real / "videos" / name
    info = probe(path)
    assert (info.frames, (info.height, info.width), info.declared) == (frames, size, declared)
    assert info.fps == pytest.approx(fps) and info.constant_rate
    assert info.backend == ("pyav" if path.suffix == ".avi" else "decord")
    info, whole = replace(info, backend="decord"), decode_all(path)
    assert len(whole) == frames
    for wanted in requests(frames, 4):
        pyav, pyav_seconds = read_frames(path, wanted, "pyav")
        decord, decord_seconds = read_frames(path, wanted, "decord", info=info)
        assert np.array_equal(pyav, whole[wanted])
        assert np.abs(pyav.astype(int) - decord).max() <= allowed
        assert np.allclose(pyav_seconds, np.array(wanted) / fps, atol=1e-3)
        assert np.allclose(pyav_seconds, decord_seconds, atol=1e-4)


@pytest.mark.parametrize("kind", ["mp4", "mov"])
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_in_the_file_is_applied_by_both(tmp_path: Path, kind: str, rotation: int) -> None:
    path = write_numbered(tmp_path / f"turned.{kind}", 12, rotation=rotation)
    info = probe(path)
    assert (info.height, info.width) == ((64, 96) if rotation == 180 else (96, 64))
    both = [read_frames(path, [5, 11, 3], backend, info=info)[0] for backend in BACKENDS]
    assert np.array_equal(*both)
    assert both[0].shape[1:3] == (info.height, info.width)
    upright = [np.rot90(frame, -rotation // 90) for frame in both[0]]
    assert numbers(np.stack(upright)) == [5, 11, 3]


def test_a_rotation_matrix_patched_into_a_file_is_applied_by_both(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "phone.mp4", 12)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of times, ids and volume
    matrix = [0, 1 << 16, 0, -1 << 16, 0, 0, 96 << 16, 0, 1 << 30]  # a quarter turn clockwise
    content[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(content)
    info = probe(path)
    assert (info.height, info.width) == (96, 64)
    both = [read_frames(path, [0, 7], backend, info=info)[0] for backend in BACKENDS]
    assert np.array_equal(*both)
    assert numbers(np.stack([np.rot90(frame, 1) for frame in both[0]])) == [0, 7]


@pytest.mark.parametrize("group", [8, 16, 20])
def test_the_reader_of_an_avi_file_is_chosen_by_its_keyframes(tmp_path: Path, monkeypatch, group: int) -> None:
    path = write_numbered(
        tmp_path / "a.avi", 80, codec="mpeg4", options={"g": str(group), "sc_threshold": "1000000000"}
    )
    monkeypatch.setattr(video, "_decord_agrees", lambda *_: True)
    assert packets.TABLES.of(path).group == 80 / -(-80 // group)
    info = probe(path)
    assert info.backend == ("pyav" if group <= video.SHORT else "decord") and info.notes == ()
    monkeypatch.setattr(video, "SHORT", 0)
    assert probe(path) == replace(info, backend="decord")


def test_frames_of_one_file_in_other_colours_are_converted_by_their_own_tables() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    frames = [av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p") for _ in range(4)]
    for frame, space in zip(frames, (1, 5, 9, 1), strict=True):  # BT.709, BT.601, BT.2020
        frame.colorspace = space
    frames[3].color_range = 2  # of a JPEG
    convert = colour.ToRgb()
    found = [convert(frame) for frame in frames]
    assert all(np.array_equal(one, colour.rgb(frame)) for one, frame in zip(found, frames, strict=True))
    assert not np.array_equal(found[0], found[3])


def test_only_the_frames_of_a_clip_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    pictures = packets.Pictures.__iter__

    def counting(self: packets.Pictures) -> Any:
        for picture in pictures(self):
            decoded.append(picture.pts)
            yield picture

    monkeypatch.setattr(packets.Pictures, "__iter__", counting)
    frames, _ = read_frames(folder / "keyframes.mkv", [30, 33, 58], "pyav")
    assert numbers(frames) == [30, 33, 58]
    assert len(decoded) <= 10  # two groups of 7 at most, not 59 frames


def test_an_edit_list_hides_frames(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    with av.open(str(folder / "one_keyframe.mp4")) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = round(20 / 25 / stream.time_base)
        for packet in source.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    info = probe(path)
    assert (info.frames, info.truncated) == (40, False)
    assert numbers(read_frames(path, [0, 39], info=info)[0]) == [20, 59]


def test_irregular_times_are_recognised_and_regular_ones_are_not(folder: Path) -> None:
    info = probe(folder / "irregular.mp4")
    ticks = FORMATS["irregular.mp4"]["ticks"]
    assert not info.constant_rate
    assert info.fps == pytest.approx(59 / (ticks[59] / 25), rel=0.02)
    _, seconds = read_frames(folder / "irregular.mp4", range(60), info=info)
    assert np.allclose(seconds, ticks / 25, atol=1e-3)
    for name in ("late.mkv", "plain.mp4", "b_frames.avi"):
        info = probe(folder / name)
        assert info.constant_rate and info.fps == pytest.approx(25)


def test_pyav_reads_where_decord_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without_decord(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "decord":
            raise ModuleNotFoundError("No module named 'decord'")
        return found(name, *args, **kwargs)

    info = probe(folder / "plain.mp4")
    monkeypatch.setattr(builtins, "__import__", without_decord)
    assert probe(folder / "plain.mp4").backend == "pyav"
    assert numbers(read_frames(folder / "plain.mp4", [3, 40], info=info)[0]) == [3, 40]
    with pytest.raises(VideoDecodeError, match="decord is missing"):
        read_frames(folder / "plain.mp4", [3], "decord")


def test_pyav_reads_where_decord_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe(folder / "plain.mp4")

    def failing(*args: Any) -> Any:
        raise VideoDecodeError("it failed")

    monkeypatch.setattr(video, "_read_decord", failing)
    assert numbers(read_frames(folder / "plain.mp4", [3, 40], info=info)[0]) == [3, 40]
    with pytest.raises(VideoDecodeError, match=r"plain.mp4: cannot be decoded \(decord: it failed\)"):
        read_frames(folder / "plain.mp4", [3], "decord", info=info)


def test_bad_files_are_refused_with_name_and_reason(folder: Path, tmp_path: Path) -> None:
    bad = {
        "missing.mp4": (None, "no such file"),
        "empty.avi": (b"", "empty"),
        "text.avi": (b"this is no video\n" * 100, "cannot be read as a video"),
        "header_lost.mp4": ((folder / "plain.mp4").read_bytes()[:3000], "cannot be read as a video"),
    }
    for name, (content, reason) in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoDecodeError, match=rf"{name}: .*{reason}"):
            probe(tmp_path / name)
        for backend in (None, *BACKENDS):
            with pytest.raises(VideoDecodeError, match=name):
                read_frames(tmp_path / name, [0], backend)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoDecodeError, match=r"song.mp4: holds no video stream"):
        probe(tmp_path / "song.mp4")


def test_an_unknown_format_is_named_and_odd_metadata_do_no_harm(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.avi").write_bytes((folder / "mpeg4.avi").read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(VideoDecodeError, match=r"odd.avi: holds video in a format that PyAV does not know"):
        probe(tmp_path / "odd.avi")
    titled = (folder / "plain.mp4").read_bytes()
    encoder = b"Lavf"  # the name of the muxer, the only text in the file
    assert encoder in titled
    (tmp_path / "latin.mp4").write_bytes(titled.replace(encoder, b"\xe9\xff\xfe\xe9"))
    assert probe(tmp_path / "latin.mp4").frames == 60


@pytest.mark.parametrize("name", ["mpeg4.avi", "keyframes.mkv"])
def test_a_file_cut_short_is_distinguished_from_a_whole_one(folder: Path, tmp_path: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 3 // 4])
    info = probe(tmp_path / name)
    assert not probe(folder / name).truncated
    assert info.truncated and 60 <= info.declared <= 61 and 10 < info.frames < 57
    assert numbers(read_frames(tmp_path / name, [0, info.frames - 2], info=info)[0]) == [0, info.frames - 2]


def test_a_real_file_cut_short(real: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.avi"
    content = (real / "videos" / "v_Basketball_g01_c01.avi").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    info = probe(path)
    assert (info.frames, info.declared, info.truncated) == (73, 141, True)
    with pytest.raises(VideoDecodeError, match=r"frame 73 was requested, but the last one is 72"):
        read_frames(path, [0, 73], info=info)


def test_wrong_requests_are_refused(folder: Path) -> None:
    path = folder / "plain.mp4"
    for indices in ([], [-1]):
        with pytest.raises(ValueError, match="frame numbers from 0 on"):
            read_frames(path, indices)
    with pytest.raises(ValueError, match="type one of decord, pyav"):
        read_frames(path, [0], "ffmpeg")
    for backend in (None, *BACKENDS):
        with pytest.raises(VideoDecodeError, match="frame 60 was requested, but the last one is 59"):
            read_frames(path, [60], backend)


def test_nothing_is_printed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(VideoDecodeError):
        probe(tmp_path / "text.avi")
    content = bytearray((folder / "mpeg4.avi").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    (tmp_path / "damaged.avi").write_bytes(content)
    info = probe(tmp_path / "damaged.avi")
    read_frames(tmp_path / "damaged.avi", [0, 5], info=info)
    assert capfd.readouterr() == ("", "")
