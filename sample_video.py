"""Sample labelled clips, or images, from a trained model: `eqm-video sample MODEL --out DIR` (see --help)."""

import sys

from eqm_video.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
