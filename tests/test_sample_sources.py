"""Files that samples start from: the frame of the time that was typed, upright, with square pixels."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from numbered import numbers, write_numbered
from PIL import Image
from video_files import disc, extent, write

from eqm_video.data.image import ORIENTATION
from eqm_video.data.transforms import center_crop
from eqm_video.data.video import probe
from eqm_video.errors import UserError
from eqm_video.sampling.clips import ClipSpec, VideoClip, open_file

TICKS = [0, 2, 5, 6, 20, 40, 50, 100]  # in 1/25 s: at 0, 0.08, 0.2, 0.24, 0.8, 1.6, 2 and 4 s


def asked(at: float | str = 0.0, needed: tuple[int, ...] = (0,), size: tuple[int, int] = (64, 96)) -> ClipSpec:
    return ClipSpec(4, size, 8.0, needed, at, 1)


@pytest.mark.parametrize(
    ("at", "number", "true"),
    [(0, 0, "0.00"), (2.0, 6, "2.00"), (1.99, 5, "1.60"), (3.9, 6, "2.00"), (4, 7, "4.00"), ("end", 7, "4.00")],
)
def test_the_frame_shown_at_a_time_of_an_irregular_video(tmp_path: Path, at: float, number: int, true: str) -> None:
    path = write_numbered(tmp_path / "a.mp4", 8, ticks=TICKS)
    clip = VideoClip.of(path, None, probe(path), asked(at))
    assert numbers(clip.read()) == [number] * 4
    assert clip.describe().endswith(f"at {true} s") and "on average" in clip.describe()


def test_several_frames_of_an_irregular_video_have_their_own_times(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", 8, ticks=TICKS)
    clip = VideoClip.of(path, None, probe(path), asked(0.8, (0, 1, 2)))
    assert clip.rows == (4, 5, 6) and clip.describe().endswith("0.80 to 2.00 s")
    for at, needed in ((60.0, (0,)), (4.0, (0, 1))):
        with pytest.raises(UserError, match=r"a.mp4 has 8 frames .* give an earlier --at"):
            VideoClip.of(path, None, probe(path), asked(at, needed))


@pytest.mark.parametrize("at", [0, 0.4, 1.16])
def test_the_frame_at_a_time_of_a_constant_rate(tmp_path: Path, at: float) -> None:
    for name in ("a.mp4", "b_frames.avi"):
        codec = {"codec": "mpeg4", "b_frames": 2} if name.endswith("avi") else {}
        path = write_numbered(tmp_path / name, 30, **codec)
        clip = VideoClip.of(path, None, probe(path), asked(at))
        assert numbers(clip.read()) == [round(25 * at)] * 4
        assert clip.describe() == f"every frame, 25 fps, at {at:.2f} s"
        with pytest.raises(UserError, match="has 30 frames"):
            VideoClip.of(path, None, probe(path), asked(1.2))


def test_the_case_of_numbered_frames_gives_the_frame_at_two_seconds() -> None:
    path = SHARED / "cases" / "vfr_numbered_frames_at_seconds.mp4"
    if not path.is_file():
        pytest.skip("needs the inputs in ../shared/cases, which this checkout does not have beside it")
    clip = VideoClip.of(path, None, probe(path), asked(2.0))
    assert clip.seconds == (pytest.approx(2.0, abs=1e-3),) and clip.describe().endswith("at 2.00 s")
    assert clip.rows == (12,)  # 0, 0.1 ... 0.9, 1.0, 1.5, 2.0


def test_pictures_are_upright_and_pixels_square(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    found = open_file(tmp_path / "a.png", asked(size=(32, 32)))
    assert np.array_equal(found.clips[0].read()[0], center_crop(np.rot90(picture, -1), 32))
    assert found.notes == ["exif rotation"]

    def set_up(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    write(tmp_path / "a.mp4", disc(128, 64), set_up=set_up)
    found = open_file(tmp_path / "a.mp4", asked(size=(64, 64)))
    height, width = extent(found.clips[0].read()[0])
    assert height == pytest.approx(width, rel=0.05) and found.notes == ["non-square pixels"]
