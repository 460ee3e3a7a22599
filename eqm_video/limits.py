"""Upper bounds of options: far beyond any use, and below values that would fill the memory or never end."""

from __future__ import annotations

MOST_FRAMES = 65_536  # of a clip
LARGEST_SIDE = 16_384  # pixels, height or width
MOST_ITEMS = 2**20  # clips or frames in a single pass through a network
MOST_CHANNELS = 4096  # of latents
MOST_LABELS = 1_000_000
MOST_UPDATES = 1_000_000  # steps of a sampler
HIGHEST_RATE = 1_000_000  # frames a second
WHOLE_NUMBERS = 2**63 - 1  # the largest whole number anywhere
