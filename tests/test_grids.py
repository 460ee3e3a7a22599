"""Grids that are drawn picture by picture, borders around known frames, and files that are filled piece by piece."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import av
import numpy as np
import pytest
from PIL import Image

from eqm_video.errors import UserError
from eqm_video.output import media
from eqm_video.output.grids import Grid
from eqm_video.output.overlays import PAPER, RESTING, draw_known_borders


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class Made(Sequence):
    """Frames (H, W, 3) that exist only while they are looked at: a square that moves on a grey ground."""

    def __init__(self, frames: int, size: int) -> None:
        self.frames, self.size = frames, size

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self.frames:
            raise IndexError(index)
        frame = np.full((self.size, self.size, 3), 90, np.uint8)
        left = index * 3 % (self.size - 8)
        frame[10:18, left : left + 8] = (200, 40, index % 256)
        return frame


def read_gif(path) -> np.ndarray:
    """The frames that a viewer shows, one for each delay of 100 ms."""
    image, frames = Image.open(path), []
    for index in range(image.n_frames):
        image.seek(index)
        frames += [np.asarray(image.convert("RGB"))] * round(image.info["duration"] / 100)
    return np.stack(frames)


def test_a_grid_is_drawn_one_picture_at_a_time():
    clips = noise(5, 4, 6, 8, 3)
    for words in ({}, {"labels": ["a", "b", "a", "b", "c"]}, {"columns": 2, "scale": 3}):
        grid, whole = Grid(clips, **words), media.grid(clips, **words)
        assert len(grid) == 4 and all((grid[k] == whole[k]).all() for k in range(4))
        assert (grid[-1] == whole[3]).all() and (np.stack(grid[1:3]) == whole[1:3]).all()
    with pytest.raises(IndexError):
        Grid(clips)[4]


def test_a_grid_can_draw_on_frames():
    clips = noise(2, 3, 6, 8, 3)
    asked = []

    def dark(frames: np.ndarray, index: int) -> np.ndarray:
        asked.append(index)
        return frames // 2

    assert (Grid(clips, draw=dark)[-1] == media.grid(clips // 2)[-1]).all() and asked == [2]


def test_known_frames_stand_in_a_border_that_covers_nothing():
    clips = noise(2, 3, 32, 48, 3)
    framed = draw_known_borders(clips, [True, False, True])
    assert framed.shape == (2, 3, 34, 50, 3) and (framed[:, :, 1:-1, 1:-1] == clips).all()
    for frame, colour in enumerate((RESTING, PAPER, RESTING)):
        around = framed[:, frame].copy()
        around[:, 1:-1, 1:-1] = colour
        assert (around == np.array(colour)).all()
    each = draw_known_borders(clips, np.array([[True, False, False], [False, False, False]]))
    assert (each[0, 0, 0, 0] == RESTING).all() and (each[1, 0, 0, 0] == PAPER).all()
    assert draw_known_borders(noise(1, 1, 128, 128, 3), [True]).shape == (1, 1, 136, 136, 3)
    with pytest.raises(ValueError, match="known must be"):
        draw_known_borders(clips, [True, False])
    with pytest.raises(ValueError, match="uint8"):
        draw_known_borders(clips.astype(float), [True, False, True])


def test_a_gif_shows_every_frame_where_and_as_long_as_it_should(tmp_path):
    frames = np.stack(list(Made(12, 40)))[[0, 0, 1, 2, 3, 3, 3, 11, 4, 0, 1, 1]]
    media.write_gif(tmp_path / "a.gif", frames, 10)
    back = read_gif(tmp_path / "a.gif")
    assert back.shape == frames.shape and np.abs(back.astype(int) - frames).max() <= 4
    media.write_gif(tmp_path / "noise.gif", noise(5, 9, 7, 3), 10)
    assert np.abs(read_gif(tmp_path / "noise.gif").astype(int) - noise(5, 9, 7, 3)).mean() < 12


def test_a_gif_that_rests_for_long_keeps_its_time(tmp_path):
    still = np.broadcast_to(noise(4, 4, 3), (20, 4, 4, 3))
    media.write_gif(tmp_path / "a.gif", still, 0.01)  # half an hour: more than one delay can say
    image = Image.open(tmp_path / "a.gif")
    delays = [(image.seek(k), image.info["duration"])[1] for k in range(image.n_frames)]
    assert sum(delays) == 20 * 100_000 and len(delays) == 4


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_long_video_is_written_without_being_in_memory(tmp_path, kind):
    frames = Made(600, 96)  # 16 MB
    tracemalloc.start()
    try:
        (media.write_gif if kind == "gif" else media.write_mp4)(tmp_path / f"a.{kind}", frames, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    limit = 12 * media.PALETTE_PIXELS + 20 * 96 * 96 * 3 if kind == "gif" else 20 * 96 * 96 * 3
    assert peak < limit + 2_000_000 < 600 * 96 * 96 * 3
    if kind == "gif":
        assert np.abs(read_gif(tmp_path / "a.gif")[599].astype(int) - frames[599]).max() <= 24
    else:
        with av.open(str(tmp_path / "a.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 600


def test_samples_are_looked_at_where_they_lie(tmp_path):
    samples = noise(3, 4, 8, 8, 3)
    media.write_npz(tmp_path / "a.npz", iter([samples[:2], samples[2:]]), np.arange(3))
    back = media.open_npz(tmp_path / "a.npz")
    assert isinstance(back, np.memmap) and back.dtype == np.uint8 and (back == samples).all()


def test_a_file_filled_piece_by_piece(tmp_path):
    clips, path = noise(2, 7, 4, 4, 3), tmp_path / "deep" / "a.npy"
    with media.NpyFile(path, clips.shape) as file:
        for start in (4, 0):
            for index in (1, 0):
                file.write(index, start, clips[index, start : start + 4])
        assert not path.exists()
    assert (np.load(path) == clips).all() and [one.name for one in path.parent.iterdir()] == ["a.npy"]
    with pytest.raises(KeyboardInterrupt), media.NpyFile(tmp_path / "b.npy", clips.shape) as file:
        file.write(0, 0, clips[0])
        raise KeyboardInterrupt
    assert [one.name for one in tmp_path.iterdir()] == ["deep"]
    with pytest.raises(ValueError, match="do not fit"), media.NpyFile(tmp_path / "b.npy", clips.shape) as file:
        file.write(0, 4, clips[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), media.NpyFile(tmp_path / "file" / "b.npy", clips.shape):
        pass
