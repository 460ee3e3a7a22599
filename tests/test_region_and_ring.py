"""Known tokens and rings of frames, proven on the exact field, then through the pipeline and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_pipeline
from torch import Tensor

from eqm_video import cli
from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.composition import ScheduledField
from eqm_video.core.decay import ConstantDecay, LinearDecay, TruncatedDecay
from eqm_video.core.region import RegionField, tokens
from eqm_video.core.ring import RingField, stride, turned
from eqm_video.errors import UserError
from eqm_video.samplers import NAG, ClosedLoop, Euler, Heun, Multistep, run
from eqm_video.samplers.warp import Identity
from eqm_video.sampling.known_mask import parse_known_mask
from eqm_video.sampling.rollout import roll_out

every_decay = pytest.mark.parametrize("decay", [ConstantDecay(), TruncatedDecay(), LinearDecay()], ids=repr)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Blind:
    """The exact field, not told gamma, that takes `at_gamma` as a network's field does."""

    settled, forwards = True, 0

    def __init__(self, field: OracleField) -> None:
        self.field = field

    def __call__(self, latents: Tensor) -> Tensor:
        return self.field(latents)

    def at_progress(self, progress: float) -> Blind:
        return self

    def at_gamma(self, gamma) -> Blind:
        return self

    def select(self, indices: Tensor) -> Blind:
        return self


# Known tokens -------------------------------------------------------------------------------------------------------


SAMPLERS = [
    (Multistep(), None, None),
    (Multistep(), None, ClosedLoop()),
    (NAG(1.0, 0.2), Identity(), None),
    (Euler(), Identity(), None),
    (Heun(), Identity(), None),
]


@every_decay
@pytest.mark.parametrize(("sampler", "warp", "loop"), SAMPLERS, ids=repr)
def test_the_unknown_tokens_become_those_of_the_clip_with_the_known_ones(decay, sampler, warp, loop):
    """12 clips; half of every frame of some of them is known: descents end at these very clips."""
    data, noise = 0.8 * normal(12, 2, 4, 4, 4, seed=1), normal(5, 2, 4, 4, 4, seed=2)
    mask = torch.zeros(5, 2, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    clean = torch.where(mask, data[:5], 7.0)  # the values of unknown tokens have no effect
    field = RegionField(Blind(OracleField(data, decay, frame_wise=True)), mask, clean, noise, decay)
    how = {"steps": 16, "decay": decay, "warp": warp, "loop": loop}
    end = run(ScheduledField(field, 16), noise, sampler, **how).latents
    near = torch.cdist(end.flatten(1), data.flatten(1)).argmin(dim=1)
    assert near.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(end, data[:5], rtol=0, atol=0.15 if loop is None else 0.4)


def test_known_tokens_go_along_their_straight_path_and_nothing_else_is_read_there():
    data, noise, decay = normal(3, 2, 4, 4, 4), normal(3, 2, 4, 4, 4, seed=1), TruncatedDecay()
    mask = torch.rand(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    field = RegionField(Blind(OracleField(data, decay)), mask, data, noise, decay)
    seen: list[Tensor] = []
    run(ScheduledField(field, 4), noise, Multistep(), steps=4, decay=decay, callback=lambda _, x, __: seen.append(x))
    for step, latents in enumerate(seen, start=1):
        path = step / 4 * data + (1 - step / 4) * noise
        torch.testing.assert_close(latents[mask.expand_as(latents)], path[mask.expand_as(path)], rtol=0, atol=1e-12)
    at = field.at_gamma(0.5)
    other = torch.where(mask, 100.0, data)
    assert torch.equal(at(data), at(other))
    part = torch.tensor([2, 0])
    torch.testing.assert_close(at.select(part)(data[part]), at(data)[part])
    with pytest.raises(ValueError, match="take multistep, euler, heun, or gd or nag with a warp"):
        field(data)


def test_a_token_is_known_if_all_its_pixels_are():
    pixels = torch.zeros(8, 8, dtype=torch.bool)
    pixels[:, 2:] = True
    assert tokens(pixels, 4).tolist() == [[False, True], [False, True]]


# Rings --------------------------------------------------------------------------------------------------------------


def test_a_descent_on_a_ring_does_not_know_where_the_clip_begins():
    """From turned noise with a turned first turn it ends at the turned clip, bit for bit: as likely, by symmetry."""
    data, noise, decay = normal(6, 5, 2, 3, 3), normal(4, 5, 2, 3, 3, seed=1), TruncatedDecay()
    first, turn = torch.tensor([0, 1, 3, 4]), torch.tensor([2, 4, 1, 0])

    def end(start: Tensor, turns: Tensor) -> Tensor:
        ring = RingField(Blind(OracleField(data, decay, frame_wise=True)), 9, turns, 5)
        return run(ScheduledField(ring, 9), start, Multistep(), steps=9, decay=decay).latents

    plain = end(noise, first)
    assert torch.equal(end(turned(noise, turn), first + turn), turned(plain, turn))
    assert not torch.equal(plain, end(noise, torch.zeros(4, dtype=torch.long)))


def test_of_the_clips_only_loops_are_left_on_a_ring():
    """4 clips that are each other's rotations among 12 that are not.

    On the ring every descent that ends at a clip ends at one of the 4, and most do; in a row most end at the others.
    """
    places, others, decay = normal(4, 2, 3, 3), normal(12, 4, 2, 3, 3, seed=5), TruncatedDecay()
    loops = torch.stack([places.roll(-k, dims=0) for k in range(4)])
    data, noise = torch.cat([loops, others]), normal(24, 4, 2, 3, 3, seed=1)
    exact = Blind(OracleField(data, decay, frame_wise=True))

    def ends(field) -> list[int]:
        end = run(ScheduledField(field, 24), noise, Multistep(), steps=24, decay=decay).latents
        gaps = torch.cdist(end.flatten(1), data.flatten(1)) / 72**0.5
        return gaps.argmin(dim=1)[gaps.amin(dim=1) < 0.2].tolist()

    ring, row = ends(RingField(exact, 24, torch.arange(24) % 4, 4)), ends(exact)
    assert len(ring) >= 12 and max(ring) < 4
    assert len(row) == 24 and sum(place < 4 for place in row) < 6


def test_turns_reach_every_frame():
    for frames in (1, 2, 3, 8, 12, 16, 22):
        assert len({step * stride(frames) % frames for step in range(frames)}) == frames
    values = torch.arange(6).reshape(2, 3)
    assert turned(values, torch.tensor([1, -1])).tolist() == [[2, 0, 1], [4, 5, 3]]


# Pipeline and command line ------------------------------------------------------------------------------------------


def test_a_call_keeps_known_regions_bit_for_bit():
    pipe = tiny_pipeline()
    clips = np.random.default_rng(0).integers(0, 255, (2, 3, 16, 16, 3), dtype=np.uint8)
    how = {"seeds": [1, 2], "clips": clips, "steps": 3, "output_type": "latent", "guidance_scale": 2.0}
    mask = np.zeros((3, 16, 16), bool)
    mask[1:, :, 8:] = True
    result = pipe(["up", "left"], sampler="multistep", known=[0], known_mask=mask, **how)
    clean, scale = pipe.encode(clips), pipe.codec.downsampling
    places = tokens(torch.from_numpy(mask), scale)[:, None].expand(2, -1, 4, -1, -1)
    assert torch.equal(result.frames[places], clean[places]) and torch.equal(result.frames[:, 0], clean[:, 0])
    assert not torch.isclose(result.frames[:, 1:], clean[:, 1:])[~places[:, 1:]].any()
    alone = pipe(["left"], sampler="multistep", known=[0], known_mask=mask, **{**how, "seeds": [2], "clips": clips[1:]})
    torch.testing.assert_close(alone.frames, result.frames[1:])
    for wrong, match in ((mask[0, :4], "it must be bool"), (np.ones((16, 16), bool), "nothing is left to sample")):
        with pytest.raises(UserError, match=match):
            pipe(["up", "left"], sampler="multistep", known_mask=wrong, **how)
    with pytest.raises(UserError, match=r"take multistep \(--sampler multistep\), or gd"):
        pipe(["up", "left"], sampler="nag", known_mask=mask, **how)
    with pytest.raises(UserError, match="known_mask and known need clips"):
        pipe(["up"], sampler="multistep", known_mask=mask)


def test_a_loop_depends_on_the_seed_and_not_on_the_batch():
    pipe = tiny_pipeline()
    how = {"steps": 4, "sampler": "multistep", "loop": True, "guidance_scale": 2.0, "output_type": "latent"}
    both = pipe(["up", "left"], seeds=[1, 2], **how).frames
    torch.testing.assert_close(pipe(["left"], seeds=[2], **how).frames, both[1:])
    row = pipe(["up", "left"], seeds=[1, 2], **{**how, "loop": False}).frames
    assert not torch.allclose(both, row)
    kept = pipe(["up"], seeds=[1], clips=row[:1], known=[1], history_guidance=1.5, **how).frames
    assert torch.equal(kept[:, 1], row[:1, 1])
    with pytest.raises(UserError, match="a loop needs at least 2 frames"):
        pipe(["up"], num_frames=1, **how)
    with pytest.raises(UserError, match="loop is for clips of one window"):
        list(roll_out(pipe, ["up"], length=5, overlap=1, **how))


def test_a_region_is_a_box_or_a_picture_for_some_frames(tmp_path):
    box = parse_known_mask("4,2,8,6@1,-1").of(4, (8, 16))
    assert box.shape == (4, 8, 16) and box.sum(axis=(1, 2)).tolist() == [0, 16, 0, 16] and box[1, 2:6, 4:8].all()
    assert parse_known_mask("outside:4,2,8,6").of(1, (8, 16)).sum() == 8 * 16 - 16
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, 16:] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    assert parse_known_mask(f"{tmp_path}/mask.png").of(2, (8, 16))[:, :, 9:].all()
    for text, match in (
        ("8,2,8,6", "the box is empty"),
        ("@1", "names no region"),
        ("0,0,9,9@9-", "is not a frame"),
    ):
        with pytest.raises(UserError, match=match):
            parse_known_mask(text)
    for text, match in (
        ("0,0,40,8", "the box ends at 40,8"),
        ("0,0,16,8", "nothing is left"),
        ("0,0,1,1@9", "9"),
        ("no.png", "no such"),
    ):
        with pytest.raises(UserError, match=match):
            parse_known_mask(text).of(4, (8, 16))


def test_the_command_line_has_both(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "export")
    photo = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    words = ["sample", str(tmp_path / "export"), "--sampler", "multistep", "--steps", "2", "--format", "png"]
    start = ["--start-from", str(tmp_path / "photo.png"), "--known-mask", "outside:4,4,12,12"]
    assert cli.main([*words, *start, "--out", str(tmp_path / "hole"), "--num-samples", "2"]) == 0
    assert "known region: outside:4,4,12,12" in capsys.readouterr().out
    settings = json.loads((tmp_path / "hole" / "samples.json").read_text())["settings"]
    assert len(settings["known_mask"]) == 32 and "known" not in settings
    assert cli.main([*words, "--loop", "--num-samples", "1", "--out", str(tmp_path / "ring")]) == 0
    assert json.loads((tmp_path / "ring" / "samples.json").read_text())["settings"]["loop"] is True
    assert cli.main([*words, "--known-mask", "0,0,8,8", "--out", str(tmp_path / "no")]) == 2
    assert "--known-mask needs clips to start from" in capsys.readouterr().err
    assert cli.main([*words, *start, "--length", "9", "--out", str(tmp_path / "no")]) == 2
    assert "leave --length out" in capsys.readouterr().err
