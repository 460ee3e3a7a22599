"""The command `merge`: adapters (LoRA) and the model that they belong to become one export."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers.utils import logging as diffusers_logging

from eqm_video import options
from eqm_video.options import narrower, option, required
from eqm_video.output.outputs import claim_output
from eqm_video.sampling.loading import load_pipeline
from eqm_video.sampling.option_groups import Modelled, Written
from eqm_video.system.files import write_text, writing_folder
from eqm_video.training.card import CARD, folder_name, merged_card


@dataclass(frozen=True, kw_only=True)
class Merge(Modelled, Written):
    """Merge adapters (LoRA) into the weights of their model, and write a whole export.

    The export samples as the model does with these adapters on, needs no PEFT, and has a card. A run with `lora.rank`
    writes a merged export of its own; this command is for adapters that come alone, and for other strengths.
    """

    model: str = required()  # declared again, to stand before the adapters
    adapters: Path = option(positional=True, metavar="ADAPTERS", help="a folder such as RUN/export/adapters")
    out: Path = narrower(help="new folder for the merged export")
    strength: float = option(1.0, above=0, most=100, metavar="S", help="how strongly the adapters act; 1: as trained")


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge and write; returns the exit status. UserError for a model or adapters that cannot be used."""
    words = sys.argv[1:] if arguments is None else arguments
    chosen = options.parse(Merge, words, prog="eqm-video merge")
    out = claim_output(chosen.out, "merge")
    diffusers_logging.disable_progress_bar()
    pipeline, source = load_pipeline(chosen.model)
    pipeline.load_lora_weights(chosen.adapters.expanduser(), scale=chosen.strength)
    pipeline.fuse_lora()
    base, adapters = folder_name(Path(source)), folder_name(chosen.adapters)
    card = merged_card(out.resolve().name, base, adapters, chosen.strength, videos=pipeline.config.frames > 1)
    with writing_folder(out) as folder:
        pipeline.save_pretrained(folder)
        write_text(folder / CARD, card)
    print(f"written to  {out}\nsample with eqm-video sample {shlex.quote(str(out))} --out samples")
    return 0
