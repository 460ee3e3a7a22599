"""Samplers: update rules, and the one loop that runs them."""

from __future__ import annotations

from eqm_video.samplers.descent import Descent, DivergenceError, descend
from eqm_video.samplers.rules import NAG, RULES, GradientDescent, Rule

__all__ = ["NAG", "RULES", "Descent", "DivergenceError", "GradientDescent", "Rule", "descend"]
