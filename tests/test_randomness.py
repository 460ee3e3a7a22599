"""Seeds and noise: stable over machines, independent of the batch."""

from __future__ import annotations

import pytest
import torch

from eqm_video.randomness import fold, generator, normal


def test_fold_gives_the_recorded_numbers():
    assert fold(0) == 6148773199958884930
    assert fold(1, 2, 3) == 6105539493046145011
    assert fold("noise", 7) == 6598634826120285146


def test_fold_distinguishes_order_type_and_grouping():
    values = [fold(1, 2), fold(2, 1), fold(12), fold("1", 2), fold("12"), fold(-1, 2), fold("1", "2"), fold(1, 2, "")]
    assert len(set(values)) == len(values)
    many = [fold(seed, step) for seed in range(30) for step in range(30)]
    assert len(set(many)) == 900
    assert all(0 <= value < 2**63 for value in many)
    assert max(many) > 2**62


@pytest.mark.parametrize("parts", [(), (1.0,), (True,), (None,), (1, b"2")])
def test_fold_refuses_other_parts(parts):
    with pytest.raises(ValueError, match="fold"):
        fold(*parts)


def test_a_sample_has_its_noise_whatever_its_batch():
    batch = normal((2, 3, 4), [generator(9, index) for index in range(5)])
    assert batch.shape == (5, 2, 3, 4)
    assert batch.dtype == torch.float32
    assert torch.equal(batch[3:4], normal((2, 3, 4), [generator(9, 3)]))
    assert not torch.equal(batch[3], batch[4])


def test_dtype_casts_the_same_numbers():
    single = normal((64,), [generator("a")])
    assert torch.equal(normal((64,), [generator("a")], dtype=torch.float64), single.double())
    assert torch.equal(normal((64,), [generator("a")], dtype=torch.bfloat16), single.bfloat16())


def test_noise_is_standard_normal():
    noise = normal((1000,), [generator(index) for index in range(20)])
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.15


def test_no_generators_is_an_error():
    with pytest.raises(ValueError, match="one generator for each sample"):
        normal((3,), [])


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    normal((3,), [generator(1)])
    assert torch.equal(before, torch.random.get_rng_state())
