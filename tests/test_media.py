"""Files of clips: GIF, PNG, mp4 and npz hold the frames and the rate that were written."""

from __future__ import annotations

import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from eqm_video.errors import UserError
from eqm_video.output import media
from eqm_video.system.claims import is_marked


def clips(count=3, frames=4, size=16) -> np.ndarray:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 120, size)[None, None, None, :, None]
    start = rng.integers(0, 50, (count, 1, 1, 1, 3))
    return np.broadcast_to(
        ramp + start + 12 * np.arange(frames)[:, None, None, None], (count, frames, size, size, 3)
    ).astype(np.uint8)


def gif_delays(path) -> list[int]:
    image = Image.open(path)
    return [(image.seek(k), image.info["duration"])[1] for k in range(image.n_frames)]


def test_to_uint8_rounds_clamps_and_puts_channels_last():
    pixels = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0, 0.5]).reshape(1, 1, 1, 1, 6).expand(2, 3, 3, 1, 6)
    levels = media.to_uint8(pixels)
    assert levels.shape == (2, 3, 1, 6, 3) and levels.dtype == np.uint8
    assert levels[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 191]


@pytest.mark.parametrize(("fps", "delay"), [(8, 120), (10, 100), (12, 80), (24, 40), (30, 30), (100, 20), (0.5, 2000)])
def test_gif_delays_are_the_nearest_and_reported(fps, delay, tmp_path):
    real = media.write_gif(tmp_path / "a.gif", clips()[0], fps)
    assert gif_delays(tmp_path / "a.gif") == [delay] * 4
    assert real == media.gif_fps(fps) == pytest.approx(1000 / delay)
    assert Image.open(tmp_path / "a.gif").info["loop"] == 0


def test_gif_keeps_the_total_time_of_equal_frames(tmp_path):
    frames = clips(frames=3)[0][[0, 0, 0, 1, 2, 2]]
    media.write_gif(tmp_path / "a.gif", frames, 10)
    assert sum(gif_delays(tmp_path / "a.gif")) == 600
    media.write_gif(tmp_path / "b.gif", frames[[0, 0, 0]], 10)
    assert sum(gif_delays(tmp_path / "b.gif")) == 300


def test_gif_colours_are_close_and_what_rests_stays(tmp_path):
    frames = clips(frames=5)[0].copy()
    frames[:, :8] = frames[0, :8]
    media.write_gif(tmp_path / "a.gif", frames, 10)
    image = Image.open(tmp_path / "a.gif")
    back = np.stack([(image.seek(k), np.asarray(image.convert("RGB")))[1] for k in range(image.n_frames)]).astype(int)
    assert np.abs(back - frames).mean() < 3
    assert (back[:, :8] == back[0, :8]).all()


def test_gif_palette_is_that_of_the_sorted_colours(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    noisy = np.clip(clips(frames=5)[0] + rng.normal(0, 9, (5, 16, 16, 3)), 0, 255).astype(np.uint8)
    for most in (media.PALETTE_PIXELS, 300):  # of all pixels, and of every fourth
        monkeypatch.setattr(media, "PALETTE_PIXELS", most)
        every = max(1, noisy[..., 0].size // most)
        chosen = [frame.reshape(-1, 3)[-k * 256 % every :: every] & 0xFC for k, frame in enumerate(noisy)]
        colours, counts = np.unique(np.concatenate(chosen), axis=0, return_counts=True)
        weighted = np.repeat(colours + 2, np.sqrt(counts).astype(int), axis=0)
        expected = Image.fromarray(weighted[:, None]).quantize(256, Image.Quantize.MEDIANCUT)
        assert media._palette(noisy).getpalette() == expected.getpalette()


def test_png_is_exact(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    media.write_png(tmp_path / "a.png", frame)
    assert (np.asarray(Image.open(tmp_path / "a.png")) == frame).all()


def test_mp4_of_odd_size(tmp_path):
    frames = clips(frames=6, size=33)[0]
    media.write_mp4(tmp_path / "a.mp4", frames, 7.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.codec_context.name, stream.codec_context.pix_fmt) == (
            7.5,
            "h264",
            "yuv420p",
        )
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == (6, 34, 34, 3)
    assert np.abs(decoded[:, :33, :33].astype(int) - frames).mean() < 4


def test_npz_layout_from_an_array_and_from_pieces(tmp_path):
    samples = clips()
    labels = np.array([2, 0, -1])
    media.write_npz(tmp_path / "a.npz", samples, labels)
    media.write_npz(tmp_path / "b.npz", (piece for piece in (samples[:1], samples[1:])), labels)
    for name in ("a.npz", "b.npz"):
        with np.load(tmp_path / name) as file:
            assert sorted(file) == ["arr_0", "labels"]
            assert file["arr_0"].dtype == np.uint8 and (file["arr_0"] == samples).all()
            assert file["labels"].dtype == np.int64 and (file["labels"] == labels).all()
    back = media.open_npz(tmp_path / "a.npz")
    assert isinstance(back, np.memmap) and (back == samples).all()


def test_npz_refuses_a_wrong_number_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="3 samples but 2 labels"):
        media.write_npz(tmp_path / "a.npz", clips(), np.zeros(2))
    with pytest.raises(ValueError, match="uint8"):
        media.write_npz(tmp_path / "a.npz", clips().astype(float), np.zeros(3))
    assert not (tmp_path / "a.npz").exists()


def test_pictures_below_a_file_are_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="cannot write"):
        media.write_png(tmp_path / "a.txt" / "b.png", clips()[0, 0])


def test_a_half_written_array_goes_with_what_ended_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), media.NpyFile(tmp_path / "a.npy", (2, 3, 4)) as file:
        file.write(0, 0, np.zeros((3, 4), np.uint8))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_grid_without_labels_tiles_and_enlarges():
    samples = clips(5)
    tiled = media.grid(samples, scale=2)
    assert tiled.shape == (4, 2 + 2 * 34, 2 + 3 * 34, 3)
    assert (tiled[:, 2:34:2, 36:68:2] == samples[1]).all()
    assert (tiled[:, -34:, -34:] == 255).all()  # the empty place
    assert media.grid(samples, columns=5).shape[2] == 2 + 5 * 18


def test_grid_gives_each_label_a_row_with_its_name():
    samples = clips(7)
    tiled = media.grid(samples, ["up", "down"] * 3 + ["up"], scale=4)
    height = (tiled.shape[1] - 2) // 2
    band = height - 64 - 2
    assert tiled.shape[2] == 2 + 4 * 66 and band >= 11
    first = tiled[:, 2 + band : 2 + height - 2 : 4]
    assert (first[:, :, 2:66:4] == samples[0]).all() and (first[:, :, 68:132:4] == samples[2]).all()
    second = tiled[:, 2 + height + band : 2 + 2 * height - 2 : 4]
    assert (second[:, :, 2:66:4] == samples[1]).all()
    for row in range(2):  # dark text on the left of each band, and none elsewhere
        text = tiled[0, 2 + row * height : 2 + row * height + band]
        assert text[:, :66].min() < 60 and text[:, 70:].min() == 255


def test_grid_labels_of_mixed_rows_are_cut_to_their_clip():
    tiled = media.grid(clips(4), ["a very long label", "b", "c", "d"], columns=2, scale=2)
    band = (tiled.shape[1] - 2) // 2 - 34
    text = tiled[0, 2 : 2 + band]
    assert text[:, 2:34].min() < 60 and text[:, 36:68].min() < 60
    assert text[:, 33:36].min() == 255


def test_grid_of_many_labels_and_wrong_arguments():
    assert media.grid(clips(9), list("abcdefghi")).shape[2] == 2 + 3 * 18
    with pytest.raises(ValueError, match="3 clips but 1 labels"):
        media.grid(clips(), ["a"])
    with pytest.raises(UserError, match="at least 1"):
        media.grid(clips(), scale=0)
    with pytest.raises(ValueError, match="uint8"):
        media.grid(clips().astype(np.float32))


def test_filmstrips_put_frames_side_by_side():
    samples = clips()
    strips = media.filmstrips(samples)
    assert strips.shape == (3, 1, 16, 64, 3)
    assert (strips[1, 0, :, 32:48] == samples[1, 2]).all()


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_bad_frame_rates(fps, tmp_path):
    for write in (media.write_gif, media.write_mp4):
        with pytest.raises(UserError, match="fps"):
            write(tmp_path / "a", clips()[0], fps)


def test_import_loads_no_video_library(root):
    import subprocess

    code = "import sys, eqm_video.output.media; print('av' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(("height", "width"), [(96, 240), (720, 1280)])
def test_mp4_says_its_colours_and_keeps_them(tmp_path, height, width):
    """Decoded by the file's own tags, as players do, on both sides of the height where untagged files change."""
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 0, 255), (255, 255, 255)])
    frame = colours.astype(np.uint8)[np.arange(width) * len(colours) // width][None].repeat(height, axis=0)
    media.write_mp4(tmp_path / "a.mp4", np.stack([frame, frame]), 8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]  # BT.709 three times, limited range
        assert context.pix_fmt == "yuv420p" and context.codec.name == "h264"
        planes = next(container.decode(stream)).to_ndarray().astype(float)
    luma = planes[:height, :]
    blue, red = (part.reshape(height // 2, width // 2) for part in np.split(planes[height:].reshape(-1), 2))
    for place, colour in enumerate(colours):
        x = (2 * place + 1) * width // (2 * len(colours))
        y, cb, cr = luma[height // 2, x], blue[height // 4, x // 2] - 128, red[height // 4, x // 2] - 128
        y, cb, cr = (y - 16) / 219, cb / 224, cr / 224  # BT.709, limited range
        r, b = y + 1.5748 * cr, y + 1.8556 * cb
        g = (y - 0.2126 * r - 0.0722 * b) / 0.7152
        assert np.abs(np.clip(np.array([r, g, b]) * 255, 0, 255) - colour).max() <= 3, colour


def test_every_picture_says_who_wrote_it(tmp_path):
    frames = clips(1)[0]
    media.write_gif(tmp_path / "a.gif", frames, 8)
    media.write_png(tmp_path / "a.png", frames[0])
    media.write_mp4(tmp_path / "a.mp4", frames, 8)
    media.write_npz(tmp_path / "a.npz", clips(2), np.zeros(2))
    assert all(is_marked(path) for path in tmp_path.iterdir())
    Image.fromarray(frames[0]).save(tmp_path / "mine.png")
    assert not is_marked(tmp_path / "mine.png")


def test_labels_of_several_lines_are_drawn(tmp_path):
    tiled = media.grid(clips(2), ["first\nsecond", "\n\tb\r\n"], scale=4)
    band = (tiled.shape[1] - 2) // 2 - 66 if tiled.shape[1] > 100 else tiled.shape[1] - 2 - 66
    assert tiled[0, 2 : 2 + band].min() < 60
