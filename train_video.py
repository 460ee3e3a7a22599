"""Train a model: `accelerate launch train_video.py --config configs/ucf101_b2.yaml data.root=... run.dir=...`."""

import sys

from eqm_video.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
