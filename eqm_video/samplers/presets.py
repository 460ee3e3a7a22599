"""Sampler settings of the paper's public runs.

The public code counts the start as a step, so its "250 steps" are 249 updates. `steps` here counts updates.
"""

from __future__ import annotations

from typing import Any

SAMPLER_PRESETS: dict[str, dict[str, Any]] = {
    # EqM-B/2, 80 epochs, no guidance: FID 32.85 on ImageNet 256 (arXiv 2510.02300)
    "paper-b2": {"kind": "gd", "step_size": 0.003, "steps": 249, "guidance_scale": 1.0},
    # the public code without any option
    "paper-default": {"kind": "gd", "step_size": 0.003, "steps": 249, "guidance_scale": 4.0},
    # EqM-XL/2, 1400 epochs: FID 1.90 on ImageNet 256
    "paper-xl2": {"kind": "nag", "step_size": 0.0017, "mu": 0.3, "steps": 249, "guidance_scale": 1.5},
}
