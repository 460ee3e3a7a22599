"""Long videos: windows over any length, their overlaps, seeds, memory and drift; and a motion that has to go on."""

from __future__ import annotations

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from tiny_models import tiny_pipeline
from torch import Tensor

from eqm_video.analysis.exact_field import OracleField
from eqm_video.core.decay import TruncatedDecay
from eqm_video.data.moving_shapes import DIRECTIONS, coverage
from eqm_video.errors import UserError
from eqm_video.models.pixels import PixelAutoencoder
from eqm_video.models.transformer import EqMTransformer
from eqm_video.randomness import fold
from eqm_video.samplers import NAG
from eqm_video.sampling.pipeline import EqMPipeline
from eqm_video.sampling.rollout import latent_motion, roll_out, window_starts

HOW = {"labels": ["up", "left"], "seeds": [3, 4], "num_frames": 4, "steps": 2}


@pytest.fixture(scope="module")
def pipe() -> EqMPipeline:
    return tiny_pipeline()


def pixels(count: int, frames: int) -> Tensor:
    size = (count, frames, 16, 16, 3)
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# ---------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("frames", [2, 3, 4, 8])
def test_windows_cover_every_length_once(frames):
    for overlap in range(1, frames):
        for length in range(1, 4 * frames + 2):
            starts, covered = window_starts(length, frames, overlap), 0
            assert starts[0] == 0
            for index, start in enumerate(starts):
                first = start + (overlap if index else 0)
                assert first == covered < length  # the next frame to come, and at least one of them is new
                covered = min(start + frames, length)
            assert covered == length


@pytest.mark.parametrize("length", [0, -1, 2.0, True, None])
def test_lengths_that_are_none_are_refused(length):
    with pytest.raises(UserError, match="it must be a whole number of frames, at least 1"):
        window_starts(length, 4, 2)


@pytest.mark.parametrize("overlap", [0, 4, 5, -1, 1.5, True])
def test_overlaps_that_windows_cannot_have_are_refused(pipe, overlap):
    with pytest.raises(UserError, match="windows of 4 frames need 1 to 3 frames of the window before"):
        next(roll_out(pipe, **HOW, length=9, overlap=overlap))


# ------------------------------------------------------------------------------------------------------ the network's


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_every_length_comes_out_whole_and_in_order(pipe, overlap):
    whole = None
    for length in (11, 10, 7, 5, 4, 3, 1):
        windows = list(roll_out(pipe, **HOW, length=length, overlap=overlap, output_type="latent"))
        places = np.cumsum([0] + [window.frames.shape[1] for window in windows])
        assert [window.start for window in windows] == places[:-1].tolist() and places[-1] == length
        assert [window.index for window in windows] == list(range(len(windows)))
        video = torch.cat([window.frames for window in windows], dim=1)
        assert video.shape == (2, length, 4, 8, 8)
        whole = video if whole is None else whole
        assert torch.equal(video, whole[:, :length])  # a shorter video is the beginning of a longer one


def test_the_first_window_is_the_plain_call_bit_for_bit(pipe):
    window = next(roll_out(pipe, **HOW, length=20, overlap=2))
    plain = pipe(**HOW, output_type="latent")
    assert torch.equal(window.latents, plain.frames)
    assert np.array_equal(window.frames, pipe(**HOW, output_type="uint8").frames)
    assert not window.known.any() and window.nfe.tolist() == plain.nfe.tolist() == [2, 2]
    assert window.drift.isnan().all()


def test_every_later_window_is_a_call_that_knows_the_last_frames_bit_for_bit(pipe):
    windows = list(roll_out(pipe, **HOW, length=10, overlap=2, guidance_scale=2.0, output_type="latent"))
    assert len(windows) == 4
    for before, window in itertools.pairwise(windows):
        assert torch.equal(window.latents[:, :2], before.latents[:, -2:])
        assert window.known.tolist() == [[True, True, False, False]] * 2
        clips = torch.zeros_like(window.latents)
        clips[:, :2] = before.latents[:, -2:]
        call = {**HOW, "seeds": [fold("window", seed, window.index) for seed in (3, 4)]}
        plain = pipe(**call, clips=clips, known=[0, 1], guidance_scale=2.0, output_type="latent")
        assert torch.equal(window.latents, plain.frames)
        assert not torch.allclose(window.latents[:, 2:], before.latents[:, 2:], atol=1e-3)


def test_a_sample_does_not_depend_on_its_batch(pipe):
    together = list(roll_out(pipe, **HOW, length=9, overlap=1, output_type="latent"))
    for row in range(2):
        one = {**HOW, "labels": [HOW["labels"][row]], "seeds": [HOW["seeds"][row]]}
        for window, both in zip(roll_out(pipe, **one, length=9, overlap=1), together, strict=True):
            torch.testing.assert_close(window.latents[0], both.latents[row], rtol=1e-4, atol=1e-5)


def test_without_seeds_videos_differ(pipe):
    torch.manual_seed(0)
    how = {"num_frames": 4, "steps": 1, "num_samples": 2, "length": 6, "overlap": 2}
    one, two = (torch.cat([window.latents for window in roll_out(pipe, **how)], dim=1) for _ in range(2))
    assert one.shape == (2, 8, 4, 8, 8)
    assert not torch.allclose(one, two) and not torch.allclose(one[0], one[1])


def test_a_real_video_is_continued(pipe):
    clips = pixels(2, 4)
    clean = pipe.encode(clips)
    how = {key: value for key, value in HOW.items() if key != "num_frames"}
    windows = list(roll_out(pipe, **how, length=7, overlap=2, clips=clips, known=[0, 1, 2], output_type="latent"))
    assert torch.equal(windows[0].latents[:, :3], clean[:, :3])
    assert not torch.allclose(windows[0].latents[:, 3], clean[:, 3], atol=1e-3)
    assert windows[0].known.tolist() == [[True, True, True, False]] * 2
    assert [window.start for window in windows] == [0, 4, 6] and windows[0].frames.shape[1] == 4
    plain = pipe(**how, clips=clips, known=[0, 1, 2], output_type="latent")
    assert torch.equal(windows[0].latents, plain.frames)
    # a start half-way to noise is the first window's alone
    half = next(roll_out(pipe, **how, length=7, overlap=2, clips=clips, start_gamma=0.5))
    assert torch.equal(half.latents, pipe(**how, clips=clips, start_gamma=0.5, output_type="latent").frames)


def test_history_and_context_act_from_the_second_window_on(pipe):
    plain = list(roll_out(pipe, **HOW, length=6, overlap=2))
    for more in ({"context_gamma": 0.8}, {"history_guidance": 2.0}):
        first, second = roll_out(pipe, **HOW, length=6, overlap=2, **more)
        assert torch.equal(first.latents, plain[0].latents)
        assert torch.equal(second.latents[:, :2], first.latents[:, 2:])
        assert not torch.allclose(second.latents[:, 2:], plain[1].latents[:, 2:], atol=1e-4)


@pytest.mark.parametrize("schedule", ["autoregressive", "pyramid"])
def test_windows_may_be_descended_frame_after_frame(pipe, schedule):
    windows = list(roll_out(pipe, **HOW, length=6, overlap=2, frame_schedule=schedule))
    plain = pipe(**HOW, frame_schedule=schedule, output_type="latent")
    assert torch.equal(windows[0].latents, plain.frames)
    assert windows[1].nfe.max() < windows[0].nfe.max()  # two frames in turn, not four


def test_motion_is_the_change_up_to_the_new_frames_and_none_where_a_video_stands(pipe):
    first, later = list(roll_out(pipe, **HOW, length=6, overlap=2))
    changes = later.latents.diff(dim=1).square().mean(dim=(2, 3, 4))
    torch.testing.assert_close(later.motion, changes[:, 1:].mean(dim=1).sqrt())
    torch.testing.assert_close(first.motion, first.latents.diff(dim=1).square().mean(dim=(1, 2, 3, 4)).sqrt())
    still = first.latents[:, :1].expand_as(first.latents)
    assert latent_motion(still).tolist() == [0, 0]
    assert latent_motion(still, torch.zeros(2, 4, dtype=torch.bool)).isnan().all()


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.5])
def test_a_step_with_history_guidance_lies_between_those_without_and_with_history(pipe, scale):
    """The guided field is linear in its strength, below 1 too; at 0 the known frames have no effect at all."""
    how = {**HOW, "sampler": "multistep", "steps": 1, "clips": pixels(2, 4), "known": [0], "output_type": "latent"}
    none, some, full = (pipe(**how, history_guidance=s).frames for s in (0.0, scale, 1.0))
    torch.testing.assert_close(some, none + scale * (full - none), rtol=1e-4, atol=1e-4)
    other = pipe(**{**how, "clips": 255 - how["clips"]}, history_guidance=0.0).frames
    assert torch.equal(other[:, 1:], none[:, 1:]) and not torch.equal(full[:, 1:], none[:, 1:])


def test_drift_is_the_gradient_on_known_frames_at_rest(pipe):
    _, window, _ = roll_out(pipe, **HOW, length=8, overlap=2, guidance_scale=3.0)
    with torch.no_grad():
        gradient = pipe.field(HOW["labels"], num_frames=4, guidance_scale=1.0)(window.latents)
    rms = gradient.square().mean(dim=(2, 3, 4)).sqrt()
    torch.testing.assert_close(window.rms, rms)
    torch.testing.assert_close(window.drift, rms[:, :2].mean(dim=1))
    assert window.rms.shape == (2, 4) and (window.rms > 0).all()


def test_memory_does_not_grow_with_the_length(pipe):
    """Windows that the caller lets go are gone, and as many tensors live after many windows as after few."""

    def living() -> int:
        gc.collect()
        return sum(1 for each in gc.get_objects() if issubclass(type(each), Tensor))

    counts, past = [], []
    for window in roll_out(pipe, **HOW, length=40, overlap=2):
        assert all(reference() is None for reference in past[:-1])  # the one before may wait for its variable
        past.append(weakref.ref(window.latents))
        if window.index in (4, 11, 18):
            counts.append(living())
    assert window.index == 18
    assert counts[0] == counts[1] == counts[2]


def test_windows_come_out_in_the_requested_form(pipe):
    for kind, shape in (("uint8", (2, 2, 16, 16, 3)), ("pt", (2, 2, 3, 16, 16)), ("latent", (2, 2, 4, 8, 8))):
        _, second = roll_out(pipe, **HOW, length=6, overlap=2, output_type=kind)
        assert tuple(second.frames.shape) == shape
    _, second = roll_out(pipe, **HOW, length=6, overlap=2, output_type="pil")
    assert len(second.frames) == 2 and len(second.frames[0]) == 2
    with pytest.raises(UserError, match="output_type 'gif' is not one of pil, np, pt, uint8, latent"):
        next(roll_out(pipe, **HOW, length=6, overlap=2, output_type="gif"))
    with pytest.raises(UserError, match="known need clips"):
        next(roll_out(pipe, **HOW, length=6, overlap=2, known=[0]))


@pytest.mark.parametrize("labels", [None, "up"])
def test_the_clips_tell_how_many_videos_there_are(pipe, labels):
    clips = pixels(2, 4)
    first, second = roll_out(pipe, labels, length=6, overlap=2, clips=clips, known=[0], steps=1)
    assert first.latents.shape[0] == second.latents.shape[0] == 2
    assert not torch.allclose(first.latents[0], first.latents[1])
    with pytest.raises(UserError, match="2 of 4 frames, but asked are 3 samples"):
        next(roll_out(pipe, ["up"] * 3, length=6, overlap=2, clips=clips, known=[0]))


def test_every_window_is_at_the_rate_of_its_sample(pipe):
    both = list(roll_out(pipe, **HOW, length=6, overlap=2, fps=[5.0, 20.0]))
    for row, rate in enumerate((5.0, 20.0)):
        one = {**HOW, "labels": [HOW["labels"][row]], "seeds": [HOW["seeds"][row]]}
        for alone, window in zip(roll_out(pipe, **one, length=6, overlap=2, fps=rate), both, strict=True):
            torch.testing.assert_close(alone.latents[0], window.latents[row], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.rms[0], window.rms[row], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="2 samples but 3 fps"):
        next(roll_out(pipe, **HOW, length=6, overlap=2, fps=[5.0] * 3))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"context_gamma": 7}, "context_gamma is 7"),
        ({"overlap": 0}, "overlap is 0"),
        ({"generator": torch.Generator()}, "give seeds= instead of generator"),
    ],
)
@pytest.mark.parametrize("length", [3, 9])
def test_what_no_window_can_have_is_refused_before_the_first(pipe, given, says, length):
    with pytest.raises(UserError, match=says):
        next(roll_out(pipe, **{**HOW, "length": length, "overlap": 2, **given}))


# ----------------------------------------------------------------------------------------------------- an exact field

SIZE, FRAMES, PERIOD = 8, 4, 4
DESCENT = {"sampler": NAG(0.03, 0.35), "steps": 30}


def orbits() -> Tensor:
    """A disc that goes round a torus in 4 frames, four ways, from every phase: (4 ways, 4 phases, T, 3, 8, 8)."""
    ways = []
    for way in DIRECTIONS.values():
        around = [
            coverage("Disc", (3.5 + 2 * way[0] * step, 3.5 + 2 * way[1] * step), 1.8, SIZE, endless=True)
            for step in range(PERIOD)
        ]
        ways.append(
            np.stack([[around[(phase + frame) % PERIOD] for frame in range(FRAMES)] for phase in range(PERIOD)])
        )
    cover = torch.from_numpy(np.stack(ways)).double()[:, :, :, None]
    return (2 * cover - 1).expand(-1, -1, -1, 3, -1, -1)


class Exact(OracleField):
    """The exact field where a pipeline's is expected."""

    def at_progress(self, progress: float) -> Exact:
        return self


@pytest.fixture(scope="module")
def exact() -> EqMPipeline:
    network = EqMTransformer(in_channels=3, patch_size=2, hidden_size=32, depth=1, num_heads=2, num_labels=1)
    made = EqMPipeline(network, PixelAutoencoder(), frames=FRAMES, size=SIZE)
    made.set_progress_bar_config(disable=True)
    field = Exact(orbits().flatten(0, 1), TruncatedDecay(a=0.8, gain=4.0), frame_wise=True)
    made.field = lambda wanted, **options: field
    return made


@pytest.mark.parametrize(("overlap", "length"), [(2, 10 * FRAMES), (3, 3 * FRAMES)])
def test_the_motion_goes_on_for_ten_times_the_window(exact, overlap, length):
    """Two frames tell place and way: from then on every frame of a long video is determined."""
    data = orbits()
    windows = roll_out(exact, length=length, overlap=overlap, num_samples=4, seeds=[0, 1, 2, 3], **DESCENT)
    video, drifts = [], []
    for window in windows:
        video.append(window.frames)
        drifts.append(window.drift)
    video = torch.from_numpy(np.concatenate(video, axis=1)).double() / 127.5 - 1
    flat = data.flatten(0, 1).movedim(2, -1)  # (16, T, H, W, 3)
    chosen = (video[:, None, :FRAMES] - flat).abs().amax(dim=(2, 3, 4, 5)).argmin(dim=1)
    assert len({int(index) // PERIOD for index in chosen}) > 1  # not all the same way
    for clip, index in zip(video, chosen.tolist(), strict=True):
        way, phase = divmod(index, PERIOD)
        truth = torch.stack([data[way, (phase + frame) % PERIOD, 0] for frame in range(length)]).movedim(1, -1)
        assert (clip - truth).abs().max() < 1.01 / 127.5  # rounded to uint8
    assert torch.stack(drifts[1:]).max() < 1e-3 and len(drifts) == len(window_starts(length, FRAMES, overlap))


def test_a_real_beginning_decides_the_whole_video(exact):
    data = orbits()
    clips = data[2, :4].float()  # downwards, from four phases
    windows = list(
        roll_out(
            exact,
            length=15,
            overlap=2,
            clips=clips,
            known=[0, 1],
            seeds=[5, 6, 7, 8],
            sampler=NAG(0.02, 0.35),
            steps=40,
        )
    )
    for window in windows:
        for row in range(4):
            first = window.start - (0 if window.index == 0 else 2)
            truth = data[2, (row + first) % PERIOD].float()
            torch.testing.assert_close(window.latents[row], truth, rtol=0, atol=1e-4)


def test_one_frame_of_overlap_keeps_the_place_and_not_the_way(exact):
    """A single frame tells where the disc is, and nothing of where it goes: the exact field turns by chance."""
    data = orbits()
    windows = list(roll_out(exact, length=3 * 7 + 1, overlap=1, num_samples=4, seeds=[0, 1, 2, 3], **DESCENT))
    ways = []
    for window in windows:
        away = (window.latents[:, None].double() - data.flatten(0, 1)).abs().amax(dim=(2, 3, 4, 5))
        assert away.amin(dim=1).max() < 1e-3
        ways.append(away.argmin(dim=1) // PERIOD)
    assert (torch.stack(ways).diff(dim=0) != 0).any()
    for before, after in itertools.pairwise(windows):
        assert torch.equal(after.latents[:, 0], before.latents[:, -1])
