"""The gradient of one step on clips and images, written to a file: run by torchrun, or called in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny_run import MemoryClips, tiny_network, tiny_trainer

CASES = (("implicit", 2), ("dot", 1))  # the energy, and passes of each process


def joint_gradient(folder: Path, energy: str = "implicit", **options: object) -> dict[str, torch.Tensor]:
    """The gradient by name, unclipped, of the first step: 4 clips of 2 to 4 frames and 4 images, unless told."""
    sets = [MemoryClips(frames=frames) for frames in (2, 3, 4)]
    network = tiny_network(energy=energy)
    settings = {"steps": 1, "batch_size": 8, "images": 4, "clips": sets, "clip_norm": None, **options}
    trainer = tiny_trainer(folder, network, **settings)
    found: dict[str, torch.Tensor] = {}
    clip = trainer._clip

    def keep() -> float:
        found.update({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
        return clip()

    trainer._clip = keep
    trainer.run()
    return found


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    for kind, passes in CASES:
        place = Path(sys.argv[1], kind)
        gradient = joint_gradient(place, kind, accelerator=accelerator, accumulation=passes)
        torch.save(gradient, place / f"gradient{accelerator.process_index}.pt")
        accelerator.wait_for_everyone()
