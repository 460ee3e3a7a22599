"""Pixels are what a person would see: shapes of pixels, high dynamic range, transparency, orientation, depth, size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image, ImageOps
from video_files import disc, extent, write

from eqm_video.data import containers, transforms
from eqm_video.data.datasets import open_data
from eqm_video.data.image import ORIENTATION, ImageInfo, decode_image, probe_image, read_image
from eqm_video.data.transforms import center_crop
from eqm_video.data.video import BACKENDS, VideoDecodeError, probe, read_frames


@pytest.fixture(scope="session")
def cases() -> Path:
    if not (SHARED / "cases").is_dir():
        pytest.skip("needs the inputs in ../shared/cases, which this checkout does not have beside it")
    return SHARED / "cases"


@contextmanager
def memory(most: int) -> Iterator[None]:
    """Fails where arrays within take more than `most` bytes at a time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most


def clip_of(folder: Path, size: int | tuple[int, int] = 64) -> np.ndarray:
    """The first frame (H,W,3) of the only video of a folder, as training sees it."""
    return open_data("videos", folder, frames=2, frame_interval=1, size=size).clip(0).pixels[0].movedim(0, -1).numpy()


# Shapes of pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", ["2/1", "1/2", "16/11"])
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("backend", BACKENDS)
def test_round_shapes_on_a_screen_are_round(tmp_path: Path, aspect: str, rotation: int, backend: str) -> None:
    def set_up(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if rotation:
            stream.set_display_rotation(rotation)

    write(tmp_path / "a.mp4", disc(128, round(128 / Fraction(aspect))), set_up=set_up)
    info = probe(tmp_path / "a.mp4")
    assert "non-square pixels" in info.notes
    frames, _ = read_frames(tmp_path / "a.mp4", [0], backend, info=info)
    height, width = extent(center_crop(frames[0], 64, pixel_aspect=info.pixel_aspect))
    assert height == pytest.approx(width, rel=0.05) and height > 20
    height, width = extent(clip_of(tmp_path))
    assert height == pytest.approx(width, rel=0.05)


def test_the_anamorphic_case_is_round(cases: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to(cases / "anamorphic_sar2_circle.mp4")
    height, width = extent(255 - clip_of(tmp_path) if clip_of(tmp_path)[0, 0, 0] > 128 else clip_of(tmp_path))
    assert height == pytest.approx(width, rel=0.05) and height > 20


def test_a_ratio_that_makes_up_for_rounding_changes_nothing(tmp_path: Path) -> None:
    def set_up(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2048, 2043)

    info = probe(write(tmp_path / "a.mp4", disc(64, 96), set_up=set_up))
    assert info.pixel_aspect == 1 and info.notes == ()


def test_non_square_pixels_are_resized_once_and_as_the_stretched_picture_is() -> None:
    frame = np.asarray(Image.fromarray(disc(240, 360)).resize((180, 240), Image.Resampling.BICUBIC))
    stretched = center_crop(disc(240, 360), 100).astype(int)
    assert np.abs(center_crop(frame, 100, pixel_aspect=2.0).astype(int) - stretched).mean() < 3


# Light and transparency ----------------------------------------------------------------------------------------------


def pq(light: np.ndarray) -> np.ndarray:
    """The PQ signal, 0 to 1, of cd/m² (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = (light / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg(light: np.ndarray) -> np.ndarray:
    """The HLG signal, 0 to 1, of cd/m² on a display of 1000 (ITU-R BT.2100)."""
    luma = (light / 1000) @ np.array([0.2627, 0.6780, 0.0593])
    scene = light / 1000 * np.maximum(luma, 1e-9)[..., None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


COLOURS = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0.2140, 0.2140, 0.2140]])  # linear BT.709
SHOWN = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [127, 127, 127]])
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


@pytest.mark.parametrize(("transfer", "encode"), [(16, pq), (18, hlg)])
def test_high_dynamic_range_is_brought_down_to_a_screens(
    tmp_path: Path, transfer: int, encode: Callable[[np.ndarray], np.ndarray]
) -> None:
    def set_up(stream: av.VideoStream) -> None:
        codec = stream.codec_context
        codec.color_trc, codec.color_primaries, codec.colorspace, codec.color_range = transfer, 9, 9, 1

    signal = encode(203 * (COLOURS @ TO_BT2020.T))  # narrow-range BT.2020 Y'CbCr of 10 bits, made by hand
    luma = signal @ np.array([0.2627, 0.6780, 0.0593])
    chroma = np.stack([(signal[:, 2] - luma) / 1.8814, (signal[:, 0] - luma) / 1.4746])
    planes = [np.round(64 + 876 * luma), *np.round(512 + 896 * chroma)]
    wide = [np.repeat(np.repeat(plane[None], 32, axis=0), 16, axis=1).astype("<u2") for plane in planes]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *wide[0].shape, "yuv444p10le"
        set_up(stream)
        for k in range(4):
            frame = av.VideoFrame(stream.width, stream.height, "yuv444p10le")
            for plane, values in zip(frame.planes, wide, strict=True):
                rows = np.zeros((plane.height, plane.line_size // 2), "<u2")
                rows[:, : plane.width] = values
                plane.update(rows.tobytes())
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = probe(path)
    assert info.notes == ("hdr",) and info.backend == "pyav"
    shown = read_frames(path, [2], info=info)[0][0][16, 8::16]
    assert np.abs(shown.astype(int) - SHOWN).max() <= 20
    assert shown[0].min() >= 235 and np.ptp(shown[0]) <= 3


def test_the_hdr_case_is_white_where_it_is_white(cases: Path) -> None:
    path = cases / "hdr10_pq_bt2020_colour_patches.mp4"
    info = probe(path)
    frame = read_frames(path, [0], info=info)[0][0].astype(int)
    patches = [frame[16 + 32 * (k // 4), 16 + 32 * (k % 4)] for k in range(8)]
    right = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (255, 255, 255)]
    assert "hdr" in info.notes and patches[6].min() >= 235
    for patch, colour in zip(patches, right, strict=False):
        assert np.abs(patch - colour).max() <= 20


def veiled() -> np.ndarray:
    """RGBA (32,48,4): opaque red, half-transparent blue, and transparent black."""
    picture = np.zeros((32, 48, 4), np.uint8)
    picture[:, :16], picture[:, 16:32] = (255, 0, 0, 255), (0, 0, 255, 128)
    return picture


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.mov", "qtrle", "argb"), ("b.mov", "png", "rgba"), ("a.webm", "libvpx-vp9", "yuva420p")],
)
def test_videos_with_transparency_lie_on_white(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    def set_up(stream: av.VideoStream) -> None:
        if codec == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"

    path = write(tmp_path / name, veiled(), "rgba", 4, codec, pixels, set_up)
    info = probe(path)
    assert info.notes == ("transparency",) and info.backend == "pyav" and info.frames == 4
    frame = read_frames(path, [3, 1], info=info)[0][0][16, [8, 24, 40]].astype(int)
    assert np.abs(frame - [(255, 0, 0), (127, 127, 255), (255, 255, 255)]).max() <= 12


def test_interlaced_videos_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", disc(64, 64), **{"x264-params": "tff=1"}, flags="+ildct+ilme")
    assert "interlaced" in probe(path).notes
    assert probe(write(tmp_path / "b.mkv", disc(64, 64))).notes == ()


# Photographs ---------------------------------------------------------------------------------------------------------


def test_16_bit_grey_keeps_its_range(cases: Path, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, axis=0)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name)[0, :, 1], np.arange(256))
        assert decode_image(tmp_path / name).notes == ("16-bit grey",)
    Image.fromarray(values[:, :8] + np.uint16(128)).save(tmp_path / "below.png")
    Image.fromarray(values[:, :8] + np.uint16(129)).save(tmp_path / "above.png")
    assert np.array_equal(read_image(tmp_path / "below.png")[0, :, 1], np.arange(8))
    assert np.array_equal(read_image(tmp_path / "above.png")[0, :, 1], np.arange(1, 9))
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "int.tif")
    assert np.array_equal(read_image(tmp_path / "int.tif")[0, :, 1], np.arange(256))
    Image.fromarray(values.astype(np.int32) * 9).save(tmp_path / "more.tif")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    for name, reason in (("more.tif", "beyond 16 bits"), ("float.tif", "floating-point")):
        for read in (read_image, decode_image):
            with pytest.raises(VideoDecodeError, match=rf"{name}: holds .*{reason}"):
                read(tmp_path / name)
    ramp = read_image(cases / "gray_ramp_16bit.png")[0, :, 0]
    assert np.abs(ramp.astype(int) - np.round(np.linspace(0, 255, len(ramp)))).max() <= 1


def test_transparent_pictures_lie_on_white(cases: Path, tmp_path: Path) -> None:
    picture = Image.fromarray(veiled())
    picture.save(tmp_path / "rgba.png")
    picture.convert("LA").save(tmp_path / "la.png")
    palette = Image.fromarray(np.repeat(np.arange(3, dtype=np.uint8), 16)[None].repeat(32, axis=0), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255, 0, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=bytes([255, 128, 0]))
    keyed = Image.fromarray(np.repeat(np.array([76, 200, 0], np.uint8), 16)[None].repeat(32, axis=0))
    keyed.save(tmp_path / "keyed.png", transparency=0)
    coloured = [(255, 0, 0), (127, 127, 255), (255, 255, 255)]
    grey = [(76, 76, 76), (142, 142, 142), (255, 255, 255)]
    right = {"rgba.png": coloured, "palette.png": coloured, "la.png": grey}
    right["keyed.png"] = [(76, 76, 76), (200, 200, 200), (255, 255, 255)]
    for name, colours in right.items():
        assert np.abs(read_image(tmp_path / name)[16, [8, 24, 40]].astype(int) - colours).max() <= 1, name
        assert probe_image(tmp_path / name).notes == decode_image(tmp_path / name).notes == ("transparency",)
    picture.putalpha(255)
    picture.save(tmp_path / "opaque.png")
    assert decode_image(tmp_path / "opaque.png").notes == ()
    assert np.array_equal(read_image(tmp_path / "opaque.png"), veiled()[..., :3])
    logo = cases / "white_logo_on_transparency.png"
    assert decode_image(logo).notes == ("transparency",) and read_image(logo)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_opaque_modes_are_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(disc(32, 32))
    picture = picture.convert("RGB" if mode == "LAB" else mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "LAB") else "a.png")
    picture.save(path)
    with Image.open(path) as opened:
        try:
            wanted = np.asarray(opened.convert("RGB"))
        except OSError as error:  # Pillow 12.3 and YCbCr
            pytest.skip(f"this Pillow cannot read its own file: {error}")
    assert np.array_equal(read_image(path), wanted)
    assert decode_image(path).notes == ()


def test_orientation_is_applied_only_with_upright(cases: Path, tmp_path: Path) -> None:
    stored = np.zeros((8, 12, 3), np.uint8)
    stored[0, 0], stored[0, -1] = 255, 128
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = tag
        for name in ("a.png", "a.tif", "a.webp"):
            path = tmp_path / name
            Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
            with Image.open(path) as opened:
                expected = np.asarray(ImageOps.exif_transpose(opened))
            # Pillow sets TIFF files upright as it decodes them.
            assert np.array_equal(read_image(path), expected if name == "a.tif" else stored)
            assert np.array_equal(read_image(path, upright=True), expected)
            assert decode_image(path).notes == (("exif rotation",) if tag > 1 and name != "a.tif" else ())
    photo = cases / "photo_exif_orientation_6.jpg"
    assert probe_image(photo) == ImageInfo(64, 128, ("exif rotation",))
    turned = read_image(photo, upright=True)
    assert np.array_equal(turned, np.rot90(read_image(photo), -1))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(photo.read_bytes())
    for upright, expected in ((False, read_image(photo)), (True, turned)):
        data = open_data("images", folder, frames=1, size=32, upright=upright)
        assert np.array_equal(data.clip(0).pixels[0].movedim(0, -1).numpy(), center_crop(expected, 32))


def test_only_formats_of_pictures_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    for read in (probe_image, decode_image, read_image):
        with pytest.raises(VideoDecodeError, match=r"a.png: .*cannot identify"):
            read(tmp_path / "a.png")


# Sizes ---------------------------------------------------------------------------------------------------------------


def test_pictures_beyond_the_limit_are_refused_before_they_are_decoded(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for read in (probe_image, decode_image, read_image):
        with memory(2**22), pytest.raises(VideoDecodeError, match=r"has 13000x13000 pixels, more than the 134 million"):
            read(cases / "bomb_169MP.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # its own limit, half of the size at which it raises
    Image.fromarray(disc(64, 64)).save(tmp_path / "a.png")
    with pytest.raises(VideoDecodeError, match=r"a.png: has far more than the 134 million pixels"):
        read_image(tmp_path / "a.png")


def test_videos_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", disc(64, 64))
    monkeypatch.setattr(containers, "MOST_PIXELS", 4000)
    with pytest.raises(VideoDecodeError, match=r"a.mp4: has frames of 64x64 pixels, more than"):
        probe(path)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (3, 5000), (5000, 4)])
def test_slivers_are_cropped_before_they_are_enlarged(shape: tuple[int, int]) -> None:
    places = np.arange(shape[0] * shape[1]) / (shape[0] * shape[1])
    sliver = np.repeat((250 * places).astype(np.uint8).reshape(*shape, 1), 3, axis=2)
    with memory(2**20):
        cropped = center_crop(sliver, 256)
    assert cropped.shape == (256, 256, 3)
    if min(shape) == 1:
        assert np.abs(cropped.astype(int) - 125).max() <= 2  # of the middle


def test_a_sliver_is_the_same_crop_as_a_whole_enlargement(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (5, 300, 3), dtype=np.uint8)
    whole = center_crop(frame, 48)
    monkeypatch.setattr(transforms, "LARGEST", 1000)
    assert np.abs(center_crop(frame, 48).astype(int) - whole).max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_are_read_in_pieces_of_cropped_frames(tmp_path: Path, backend: str) -> None:
    write(tmp_path / "a.mp4", disc(240, 320), frames=150, preset="ultrafast")
    data = open_data("videos", tmp_path, frames=2, frame_interval=1, size=32)
    assert data.files[0][2].backend == "decord"
    data.files[0] = (*data.files[0][:2], replace(data.files[0][2], backend=backend))
    pieces = list(data.pieces(0))
    assert [len(piece) for piece in pieces] == [64, 64, 22]
    assert np.array_equal(np.concatenate(pieces), data.whole(0)[0])
    with memory(20 * 240 * 320 * 3):  # the file's frames are 150
        for _ in data.pieces(0):
            pass
