"""What type checkers see of the package: the names that `__init__.py` imports on first use."""

from eqm_video.models.presets import build_model as build_model
from eqm_video.models.transformer import EqMTransformer as EqMTransformer
from eqm_video.models.unet import EqMUNet as EqMUNet
from eqm_video.sampling.pipeline import EqMPipeline as EqMPipeline
