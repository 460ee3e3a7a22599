"""Latents kept in memory: the same clips as encoding them again each time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import write_codec

from eqm_video.codec import Codec
from eqm_video.data import latents
from eqm_video.data.datasets import collate, open_data
from eqm_video.data.latents import LatentsInMemory, collate_latents
from eqm_video.data.moving_shapes import write_moving_shapes
from eqm_video.errors import UserError


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return Codec.load(str(write_codec(tmp_path_factory.mktemp("codec") / "vae")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "Shapes"
    write_moving_shapes(root, shapes=("Disc",), videos=2, held_out=0, frames=11, size=32)
    for folder in root.iterdir():  # names without a direction, so that flips are allowed
        if folder.is_dir() and folder.name != "splits":
            folder.rename(root / folder.name.replace("Disc", "Class").translate(str.maketrans("RLDU", "abcd"))[:6])
    for file in (root / "splits").iterdir():
        file.unlink()
    (root / "splits").rmdir()
    return root


@pytest.mark.parametrize(("flip", "resize"), [(False, "adm"), (True, "adm"), (True, "torch")])
def test_requests_give_the_clips_that_the_set_gives(root: Path, codec: Codec, flip: bool, resize: str) -> None:
    data = open_data("videos", root, frames=4, frame_interval=2, size=20, flip=flip, resize=resize)
    stored = LatentsInMemory(data, codec, "cpu", quiet=True)
    requests = [(index, seed) for index in range(len(data)) for seed in (1, 2, 3)]
    online = collate([data[request] for request in requests])
    memory = collate_latents([stored[request] for request in requests])
    expected = codec.moments(online["pixels"].float() / 127.5 - 1)
    torch.testing.assert_close(memory["moments"].float(), expected, rtol=1e-3, atol=1e-3)  # kept in half precision
    for key in ("labels", "times"):
        assert torch.equal(memory[key], online[key])
    assert memory["names"] == online["names"]
    starts = {stored[request].start for request in requests}
    assert starts == {data[request].start for request in requests} and len(starts) > 1


def test_files_that_do_not_decode_are_left_out(root: Path, codec: Codec, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "set")
    data = open_data("videos", tmp_path / "set", frames=4, frame_interval=2, size=32)
    (data.root / data.files[0][0]).write_text("overwritten")
    with pytest.warns(UserWarning, match="cannot be decoded.*it is skipped") as warned:
        stored = LatentsInMemory(data, codec, "cpu", quiet=True)
        clips = [stored[(0, seed)] for seed in range(6)]
    assert sum(issubclass(one.category, UserWarning) for one in warned) == 1 and len(stored) == len(data)
    assert [clip.name for clip in clips] == [data[(0, seed)].name for seed in range(6)]
    assert data.files[0][0] not in {clip.name for clip in clips}
    for name, _, _ in data.files:
        (data.root / name).write_text("overwritten")
    with (
        pytest.warns(UserWarning),
        pytest.raises(UserError, match=f"none of the {len(data)} files in .* can be decoded"),
    ):
        LatentsInMemory(data, codec, "cpu", quiet=True)


def test_a_set_that_is_too_large_is_refused_before_it_is_encoded(
    root: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data("videos", root, frames=4, frame_interval=2, size=32)
    monkeypatch.setattr(latents, "LIMIT", 1000)
    with pytest.raises(UserError, match=r"type data\.latents=online"):
        LatentsInMemory(data, codec, "cpu", quiet=True)


def test_moments_are_encoded_in_pieces_and_kept_in_half_precision(
    root: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data("videos", root, frames=4, frame_interval=2, size=32)
    whole = LatentsInMemory(data, codec, "cpu", quiet=True)
    encode, counts = codec.moments, []

    def counting(pixels: torch.Tensor) -> torch.Tensor:
        counts.append(pixels.shape[1])
        return encode(pixels)

    pieces = data.pieces
    monkeypatch.setattr(data, "pieces", lambda index: pieces(index, 4))
    monkeypatch.setattr(codec, "moments", counting)
    stored = LatentsInMemory(data, codec, "cpu", quiet=True)
    assert counts == [4, 4, 3] * len(data)
    held = sum(one.nbytes for mirrorings, _ in stored.files.values() for one in mirrorings)
    assert stored.bytes == held == 2 * 11 * len(data) * 2 * codec.latent_channels * (32 // codec.downsampling) ** 2
    for index in range(len(data)):
        np.testing.assert_allclose(stored.files[index][0][0], whole.files[index][0][0], rtol=2e-3, atol=2e-3)
        assert (stored.files[index][1] == data.whole(index)[1]).all()
    assert stored[(0, 1)].moments.dtype == torch.float16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_moments_that_are_not_finite_are_refused_by_name(
    root: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    data = open_data("videos", root, frames=4, frame_interval=2, size=32)
    encode = codec.moments

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        moments = encode(pixels)
        moments[0, 2, 0, 0, 0] = value
        return moments

    monkeypatch.setattr(codec, "moments", broken)
    with pytest.raises(UserError, match=rf"the latents of .*{Path(data.files[0][0]).name} are not finite"):
        LatentsInMemory(data, codec, "cpu", quiet=True)
