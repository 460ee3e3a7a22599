"""`EqMPipeline`: a trained network with its codec and sampler settings. It turns labels and seeds into frames.

Shapes: B samples, T frames, C latent channels, H W pixels, h w latents. An image is T = 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ConfigMixin, DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput
from torch import Generator, Tensor

from eqm_video.codec import BUNDLED, Codec
from eqm_video.core.composition import ScheduledField
from eqm_video.core.decay import ConstantDecay, Decay, ScaledDecay
from eqm_video.core.field import GradientField
from eqm_video.core.guidance import HistoryField
from eqm_video.core.region import RegionField
from eqm_video.core.ring import RingField
from eqm_video.errors import UserError
from eqm_video.models.adapters import has_adapters, load_adapters, merged, remove_adapters
from eqm_video.models.loading import load_transformer
from eqm_video.models.pixels import PixelAutoencoder
from eqm_video.models.readout import LevelReadout, load_readout, save_readout
from eqm_video.models.transformer import EqMTransformer
from eqm_video.models.unet import EqMUNet
from eqm_video.samplers import NAG, STOP, Descent, GradientDescent, frame_moves, run
from eqm_video.samplers.closed_loop import LearnedLoop
from eqm_video.samplers.warp import warp_text
from eqm_video.sampling import field as parts
from eqm_video.sampling.arguments import (
    Label,
    as_list,
    as_size,
    check_rates,
    check_turns,
    make_generators,
    step_gammas,
)
from eqm_video.sampling.folders import (
    PARTS,
    SHIPPED_FOLDER,
    describe_folder,
    holds_model,
    local_folder,
    part_dtype,
)
from eqm_video.sampling.keywords import explain_keywords
from eqm_video.sampling.model_settings import (
    check_settings,
    curvature_settings,
    decay_settings,
    is_whole,
    label_names,
    number,
    objective_settings,
    rate,
    sampler_settings,
    whole,
)
from eqm_video.sampling.pictures import Pictures
from eqm_video.sampling.settings import Sampling, with_sampling
from eqm_video.sampling.start import Clips, Start, check_start, known_pixels
from eqm_video.system import waits
from eqm_video.system.files import finish
from eqm_video.system.reading import read_json

OUTPUT_TYPES = ("pil", "np", "pt", "uint8", "latent")
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


@dataclass
class EqMPipelineOutput(BaseOutput):
    """The result of a pipeline call: frames, and evaluations of the field.

    frames: by `output_type`: "pil" a list per sample of T PIL images; "np" float32 (B, T, H, W, 3) in [0, 1]; "pt"
        float32 (B, T, 3, H, W) in [0, 1]; "uint8" an array (B, T, H, W, 3); "latent" the latents (B, T, C, h, w).
    nfe: (B,) int64 on the CPU: evaluations of the field for each sample (a guided evaluation counts once).
    frame_nfe: (B, T) int64: the evaluations at which the frame was active.
    levels: (2, S, B, T) on the CPU, of a closed loop: the gamma of every frame at each of S evaluations after its
        correction, and the correction; NaN while a frame did not move. None without a closed loop.
    """

    frames: Any
    nfe: Tensor
    frame_nfe: Tensor
    levels: Tensor | None = None


class EqMPipeline(DiffusionPipeline):
    """Samples clips and images by descending the learned gradient (arXiv 2510.02300, section 3.3).

    transformer, vae: the network and the autoencoder, whose latent channels must agree.
    id2label: names of the labels. decay: the c(gamma) it was trained with. sampler: recommended settings: kind (of
    `samplers.SAMPLERS`), that sampler's numbers, steps, guidance_scale. frames, fps, size (pixels, or [height, width]):
    defaults of a call. reference_fps: the network's unit of time is 1 / reference_fps seconds. curvature: the
    measurement of `eqm-video curvature --write`, for step_size="auto". objective: the training
    objective: name (eqm, forcing or flow) and gamma, the draw.

    Load exports with `EqMPipeline.from_pretrained`; diffusers' own DiffusionPipeline cannot find this class.
    """

    model_cpu_offload_seq = "transformer->vae"
    readout: LevelReadout | None = None  # of `eqm-video readout --write`
    _interrupt = False

    def __init__(
        self,
        transformer: EqMTransformer | EqMUNet,
        vae: AutoencoderKL | AutoencoderTiny | PixelAutoencoder,
        id2label: Mapping[Any, str] | Sequence[str] | None = None,
        decay: Mapping[str, Any] | None = None,
        sampler: Mapping[str, Any] | None = None,
        frames: int = 16,
        fps: float = 8.0,
        reference_fps: float = 8.0,
        size: int | Sequence[int] | None = None,
        curvature: Mapping[str, Any] | None = None,
        objective: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if transformer.config.in_channels != vae.config.latent_channels:
            raise UserError(
                f"the network works on {transformer.config.in_channels} latent channels, the codec has "
                f"{vae.config.latent_channels}: choose the codec that the network was trained with"
            )
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(
            id2label=label_names(id2label),
            decay=decay_settings(decay),
            sampler=sampler_settings(sampler),
            frames=whole("frames", frames),
            fps=rate("fps", fps),
            reference_fps=rate("reference_fps", reference_fps),
            size=size if size is None or is_whole(size) else list(as_size(size)),
            curvature=curvature_settings(curvature),
            objective=objective_settings(objective),
        )

    @property
    def components(self) -> dict[str, Any]:
        """The arguments of a second pipeline on the same weights, `EqMPipeline(**pipe.components)`.

        These are the modules and the settings (labels, sampler, size ...), which diffusers keeps under `parameters`.
        """
        return {**super().components, **super().parameters}

    @property
    def parameters(self) -> dict[str, Any]:
        """Empty: `components` holds the settings. `EqMPipeline(**pipe.components, **pipe.parameters)` works as well."""
        return {}

    # Loading --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> EqMPipeline:
        """Load an export: a local folder, a hub id, which is downloaded first, or "demo", which ships with the package.

        Keywords are diffusers' own (`torch_dtype`, `variant`, `revision`, `token` ...); weights become float32 unless
        `torch_dtype` (or `dtype`) says otherwise: a dtype or its name, "auto" (as they were saved), or a mapping of
        these by "transformer", "vae" and "default". variant: the variant of both parts' weights, such as "fp16". Only
        safetensors are read. Raises UserError for a folder that is no export, and for weights that do not fit the
        architecture.
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = local_folder(pretrained_model_name_or_path, hub)
        index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
        if index.get("_class_name") != cls.__name__:
            raise UserError(f"{folder} is no export of {cls.__name__}: {describe_folder(folder, index)}")
        check_settings(index, folder / "model_index.json")
        older, dtype = kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None)
        if None not in (older, dtype) and older != dtype:
            raise UserError(f"torch_dtype is {older!r} and dtype is {dtype!r}: they mean the same, give one of them")
        dtype, variant = older if dtype is None else dtype, kwargs.pop("variant", None)
        kinds = {part: part_dtype(dtype, part) for part in PARTS}
        if "transformer" not in kwargs:
            kwargs["transformer"] = load_transformer(folder / "transformer", kinds["transformer"], variant)
        if "vae" not in kwargs:
            if folder == SHIPPED_FOLDER:  # its codec lies beside it, and is not stored twice
                kwargs["vae"] = Codec.load(BUNDLED, torch_dtype=kinds["vae"]).vae
            elif not (folder / "vae").is_dir():
                raise UserError(f"{folder} is no whole export, since it has no folder vae: copy it again")
            else:
                kwargs["vae"] = Codec.load(folder / "vae", torch_dtype=kinds["vae"], variant=variant).vae
        pipeline = super().from_pretrained(str(folder), **kwargs)
        pipeline.readout = load_readout(folder, _width(kwargs["transformer"]))
        return pipeline

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path, *, codec: str | Codec | None = None, torch_dtype: Any = None
    ) -> EqMPipeline:
        """The averaged network of a training checkpoint, with the codec that its `pipeline.json` names, or `codec`.

        torch_dtype: as for `from_pretrained`. Raises UserError for a folder that is no whole checkpoint.
        """
        folder = Path(folder)
        if not holds_model(folder):
            raise UserError(f"{folder} is no whole checkpoint (checkpoint.json, pipeline.json, ema/config.json)")
        settings = read_json(folder / "pipeline.json")
        check_settings(settings, folder / "pipeline.json")
        trained_with = settings.pop("codec", None)
        if codec is None and trained_with is None:
            raise UserError(f"{folder / 'pipeline.json'} names no codec: give one (--codec, or codec=...)")
        transformer = load_transformer(folder / "ema", part_dtype(torch_dtype, "transformer"))
        vae = as_codec(codec if codec is not None else trained_with, part_dtype(torch_dtype, "vae")).vae
        try:
            pipeline = cls(transformer, vae, **settings)
        except (TypeError, UserError) as error:
            raise UserError(f"{folder / 'pipeline.json'} does not hold the pipeline's settings ({error})") from error
        pipeline.readout = load_readout(folder, _width(transformer))
        return pipeline

    # Gradient field, codec, decay and samplers (sampling/field.py) ----------------------------------------------------

    codec = property(parts.codec)
    labels = property(parts.labels)
    label_ids = parts.label_ids
    decay = property(parts.decay)
    field = parts.field
    composed_field = parts.composed_field
    start_noise = parts.start_noise
    encode = parts.encode
    decode = parts.decode
    rule = parts.rule
    step_warning = parts.step_warning
    check_size = parts.check_size
    check_frames = parts.check_frames

    # Adapters -------------------------------------------------------------------------------------------------------

    def load_lora_weights(self, folder: str | Path, scale: float = 1.0) -> None:
        """Put the adapters (LoRA) in a folder of PEFT's layout, such as RUN/export/adapters, on the network.

        scale: multiplies their effect. UserError for a folder without adapters, or with those of another network, and
        for a network that has some already. Needs PEFT, the extra `[lora]`.
        """
        if has_adapters(self.transformer):
            raise UserError("the network has adapters already: call fuse_lora() or unload_lora_weights() first")
        load_adapters(self.transformer, Path(folder), number("scale", scale))

    def fuse_lora(self) -> None:
        """Merge the adapters into the network's weights: it samples the same, and can be saved."""
        self.register_modules(transformer=merged(self.transformer))

    def unload_lora_weights(self) -> None:
        """Take the adapters off the network; its own weights are what they were."""
        remove_adapters(self.transformer)

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **keywords: Any) -> None:
        """Save the pipeline as diffusers does, and its readout; UserError for adapters that are not merged.

        No path of this machine is written, and weights are as readable as any new file.
        """
        if has_adapters(self.transformer):
            raise UserError(
                "the network has adapters: call fuse_lora() to save them in its weights, or unload_lora_weights()"
            )
        if not Path(save_directory).is_file():  # which diffusers reports; before it, for it may upload the folder
            save_readout(self.readout, Path(save_directory))
        with _nameless(self, self.transformer, self.vae):
            super().save_pretrained(str(save_directory), *arguments, **keywords)
        for path in Path(save_directory).glob("*/*.safetensors"):
            finish(path)

    # Sampling -------------------------------------------------------------------------------------------------------

    @explain_keywords
    def __call__(self, labels: Label | Sequence[Label] = None, **keywords: Any) -> EqMPipelineOutput:
        """Sample a clip for each label. Arguments that are None take the model's own settings.

        labels: a list of names or numbers (None: unlabelled), or a single label for all `num_samples` samples.
        num_frames: T. fps: frames per second, a number or a list with a rate for each sample: frame k of a clip is at
        time k * reference_fps / fps for the network. Give the true rate of a real video whose frames are known. size:
        pixels, or (height, width); a multiple of the codec's downsampling times the patch size. seeds: a seed for each
        sample; it gives the same start noise in any batch and on any device. generator: a generator of torch, or a list
        of them, instead of seeds. Neither: fresh seeds from torch's global generator. clips: uint8 (B, T, H, W, 3),
        latents (B, T, C, h, w), or Pillow's pictures: a picture, a list with a picture for each sample (shown in every
        frame; without known and start_gamma the first frame is known: image-to-video), or a list of lists of frames.
        Pictures are turned upright, resized and cropped to size. start_gamma: the unknown frames start at start_gamma *
        clip + (1 - start_gamma) * noise (partial denoising). known: frames that stay as they are in `clips` while the
        others descend, by number (-1 is the last) or as bool (B, T): the first for image-to-video, the first k for
        continuation, the first and the last for in-betweening. known_mask: the known
        pixels of other frames, bool (H, W), (T, H, W) or (B, T, H, W). context_gamma: that to which known frames are
        noised before the network sees them; a little below 1 makes it forgive their faults. history_guidance: s of
        `HistoryField`. callback(step, latents, gradient); setting `_interrupt` of this pipeline to True in it ends the
        descent there. output_type: see EqMPipelineOutput. decode_chunk_size: frames decoded at once. All fields of
        `Sampling` are keywords too: steps, sampler, guidance_scale and the others. Keywords of diffusers' pipelines
        (num_inference_steps, image, video, callback_on_step_end, return_dict): see `sampling.keywords`.
        Raises UserError for arguments that cannot be sampled, and when the descent diverges.
        """
        how, others = Sampling.split(keywords)
        return self.sample(how, labels, **others)

    @torch.no_grad()
    def sample(
        self,
        how: Sampling,
        labels: Label | Sequence[Label] = None,
        *,
        num_samples: int | None = None,
        num_frames: int | None = None,
        seeds: Sequence[int] | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        fps: float | Sequence[float] | None = None,
        size: int | tuple[int, int] | None = None,
        clips: Any = None,
        known: Tensor | Sequence[int] | None = None,
        known_mask: Any = None,
        output_type: str = "pil",
        callback: Callable[[int, Tensor, Tensor], Any] | None = None,
        decode_chunk_size: int = 64,
    ) -> EqMPipelineOutput:
        """Sample as a call does, with a `Sampling` in place of its fields. The other arguments are those of a call."""
        self._interrupt = False
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        if (pictures := Pictures.of(clips)) is not None:
            count = len(as_list(labels, num_samples, seeds, generator))
            clips = self._clips_of(pictures, count, num_frames, size)
            if pictures.still and known is None and how.start_gamma == 0 and clips.shape[1] > 1:
                known = [0]
        origin = None if clips is None else Clips.of(clips)
        if origin is not None:
            num_samples, num_frames, size = origin.agree(self, labels, num_samples, num_frames, size)
        conditioned = self.transformer.config.conditioned_on_gamma
        context, history = how.context_gamma, how.history_guidance
        masked = known_mask is not None
        known = check_start(origin, how.start_gamma, known, context, history, conditioned=conditioned, masked=masked)
        pixels = known_pixels(known_mask, origin, self.codec.downsampling) if masked else None
        if how.step_size == "auto" and how.history_guidance != 1:
            raise UserError("step_size auto was measured without history guidance: give step_size a number")
        wanted = as_list(labels, num_samples, seeds, generator)
        generators = make_generators(len(wanted), seeds, generator)
        decode_chunk_size = whole("decode_chunk_size", decode_chunk_size)
        _check_composition(how, wanted)
        if how.step_size == "auto" and any(len(term) > 2 for term in how.composition or ()):
            raise UserError("step_size auto was measured for this model alone: with others give step_size a number")
        how = how.on(self)
        if wrong := self.step_warning(how.sampler, how.steepness, plain=how.plain):
            warnings.warn(wrong, stacklevel=4)
        if (
            isinstance(self.decay, ConstantDecay)
            and how.warp is None
            and isinstance(how.sampler, GradientDescent | NAG)
        ):
            warnings.warn(
                "this model was trained with a constant decay: a descent does not stop at the data, it goes on beyond; "
                "add --warp identity (warp=), or take multistep, euler or heun",
                stacklevel=4,
            )
        timing = {"num_frames": num_frames, "fps": check_rates(fps, len(wanted))}
        try:
            field = self._field_of(how, wanted, timing)
            noise = self.start_noise(generators, num_frames=num_frames, size=size)
            around = {"gamma": how.start_gamma, "known": known, "context_gamma": how.context_gamma, "pixels": pixels}
            start = Start.of(noise, self.codec, origin, **around)
            descent = self._descend(how, field, start, generators, callback)
        except ValueError as error:  # wrong numbers and divergence; the message says which
            raise UserError(str(error)) from error
        result = self.decode(start.finish(descent.latents), output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        levels = None if descent.levels is None else descent.levels.cpu()
        return EqMPipelineOutput(result, descent.nfe.cpu(), descent.frame_nfe.cpu(), levels)

    def _descend(
        self,
        how: Sampling,
        field: GradientField,
        start: Start,
        generators: Sequence[Generator],
        callback: Callable[[int, Tensor, Tensor], Any] | None,
    ) -> Descent:
        """Carry a start to rest along a field, with a progress bar; ValueError for wrong numbers and divergence."""
        moves = frame_moves(how.frame_schedule, how.steps, start.unknown)
        if moves is not None:
            check_turns(how.sampler, how.guidance_interval)
        total = how.steps if moves is None else len(moves)
        field = self._placed(how, field, start, generators, total)
        with self.progress_bar(total=total) as bar:
            return run(
                ScheduledField(field, total, self._gammas(how, start.known, moves)),
                start.latents,
                how.sampler,
                steps=total,
                start_gamma=how.start_gamma,
                decay=self._decay_of(how),
                warp=how.warp,
                loop=how.closed_loop,
                known=start.known,
                moves=moves,
                schedule=how.step_schedule,
                tolerance=how.tolerance,
                per_frame=how.per_frame,
                callback=self._after_step(bar, callback),
                generators=generators,
            )

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked for the end of this call, by `pipeline._interrupt = True` as in diffusers."""
        return self._interrupt

    def _after_step(self, bar: Any, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The callback of a descent: it moves the bar, calls `callback`, and ends the descent if one asked for it."""

        def after(step: int, latents: Tensor, gradient: Tensor) -> Any:
            bar.update()
            answer = None if callback is None else callback(step, latents, gradient)
            return STOP if self._interrupt else answer

        return after

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """The bar of a descent, as `set_progress_bar_config` says: disable=True hides it."""
        look = dict(getattr(self, "_progress_bar_config", {}))
        hidden, what = look.pop("disable", False), look.pop("desc", "descending")
        return waits.bar(iterable, what, unit=look.pop("unit", "step"), total=total, shown=not hidden, **look)

    def _placed(
        self, how: Sampling, field: GradientField, start: Start, generators: Sequence[Generator], steps: int
    ) -> GradientField:
        """The field on a ring, with history guidance and beside known tokens, where these are asked for."""
        frames = start.noise.shape[1]
        if how.loop:
            if frames < 2:
                raise UserError("a loop needs at least 2 frames: give num_frames (--frames), or leave loop out")
            turns = [torch.randint(frames, (1,), generator=each, device=each.device) for each in generators]
            field = RingField(field, steps, torch.cat(turns).to(start.noise.device), frames)
        if how.history_guidance != 1:
            field = HistoryField(field, start.known, start.noise, how.history_guidance)
        if start.region is None:
            return field
        divided = how.warp is not None or getattr(how.sampler, "needs_route", False)
        if not divided and not (hasattr(how.sampler, "solve") and isinstance(self.decay, ConstantDecay)):
            raise UserError(
                f"known tokens move by the level of their frame, which {how.sampler!r} does not know: take multistep "
                "(--sampler multistep), or gd, nag, euler or heun with a warp (--warp identity)"
            )
        decay = self._decay_of(how) if divided else self.decay
        return RegionField(field, start.region, start.clean, start.noise, decay)

    def _field_of(self, how: Sampling, labels: Sequence[Label], timing: Mapping[str, Any]) -> GradientField:
        """The field to descend: the composition, or the guided field of the labels."""
        if how.composition is not None:
            if isinstance(how.closed_loop, LearnedLoop):
                raise UserError("a composition has no readout of its own: take closed_loop field (--closed-loop field)")
            return self.composed_field(how.composition, len(labels), plain_sum=how.plain_sum, **timing)
        interval, match = how.guidance_interval, how.match_norm
        guidance = {"guidance_scale": how.guidance_scale, "guidance_interval": interval, "match_norm": match}
        field = self.field(labels, **guidance, **timing)
        if isinstance(how.closed_loop, LearnedLoop):
            if self.readout is None:
                raise UserError(
                    "this model has no readout: type eqm-video readout MODEL --data FOLDER --write, or field"
                )
            field.readout = self.readout
        return field

    def _decay_of(self, how: Sampling) -> Decay | None:
        """c(gamma) of the field to descend, a plain sum having that of its terms times their weights; None: unknown."""
        if how.warp is None and not getattr(how.sampler, "needs_route", False):
            return None
        means = repr(how.sampler) if how.warp is None else f"the warp {warp_text(how.warp)}"
        others = [term[2] for term in how.composition or () if len(term) > 2]
        if any(each.config.decay != self.config.decay for each in others):
            raise UserError(
                f"{means} divides the field by one decay, and the composed models have several: take another "
                "sampler, such as nag, or compose models of one decay"
            )
        if self.decay is None:
            raise UserError(
                f"{means} divides the field by the decay c(gamma) of its training, which this model does not "
                "say: take another sampler, such as nag"
            )
        if how.plain is None:
            return self.decay
        if sum(how.plain) <= 0:
            raise UserError(
                f"{means} needs a field that leads to data, and the weights of this plain sum add up to "
                f"{sum(how.plain):g}: give weights of a sum above 0, or take another sampler, such as nag"
            )
        return ScaledDecay(self.decay, sum(how.plain))

    def _gammas(self, how: Sampling, known: Tensor | None, moves: Tensor | None) -> Tensor | None:
        """Gamma at each step (steps,), the input of a network that is conditioned on gamma; None for others."""
        if not self.transformer.config.conditioned_on_gamma or how.warp is not None:
            return None
        alone, pull = how.per_frame or moves is not None, 1.0 if how.plain is None else sum(how.plain)
        return step_gammas(self.decay, how.sampler, how.steps, how.step_schedule, how.start_gamma, known, alone, pull)

    def _clips_of(self, pictures: Pictures, count: int, num_frames: int | None, size: Any) -> Any:
        """The clips uint8 (B, T, H, W, 3) that a call makes of pictures."""
        size = self.config.size if size is None else size
        return pictures.clips(count, self.check_frames(num_frames), None if size is None else self.check_size(size))


EqMPipeline.__call__.__signature__ = with_sampling(EqMPipeline.sample)


def _check_composition(how: Sampling, wanted: Sequence[Label]) -> None:
    """UserError for arguments that a composition would ignore, or that would be ignored without a composition."""
    guided = how.match_norm or how.guidance_scale is not None or how.guidance_interval is not None
    if how.composition is not None and (guided or any(label is not None for label in wanted)):
        raise UserError("a composition takes the place of labels and of guidance (its weights): leave those out")
    if how.plain_sum and how.composition is None:
        raise UserError("plain_sum says how to compose: give composition=[(label, weight), ...]")
    if how.composition is not None and not isinstance(how.composition, (list, tuple)):
        raise UserError(f"composition is {how.composition!r}; it must be a list of terms, (label, weight) each")
    for term in how.composition or ():
        if not isinstance(term, (tuple, list)) or len(term) not in (2, 3):
            raise UserError(
                f"a term of the composition is {term!r}; it must be (label, weight), or with a pipeline too"
            )
        number("a weight of the composition", term[1])


def _width(network: torch.nn.Module) -> int | None:
    """The width of a network's tokens, where its configuration says it."""
    return getattr(network.config, "hidden_size", None)


def as_codec(codec: str | Codec, dtype: torch.dtype | str | None) -> Codec:
    """`codec` itself, or the codec of that name, loaded in `dtype`."""
    return codec if isinstance(codec, Codec) else Codec.load(codec, torch_dtype=dtype)


@contextmanager
def _nameless(*parts: ConfigMixin) -> Iterator[None]:
    """A block in which no configuration of `parts` says from which folder of this machine it was loaded.

    diffusers would write that path into every file. The name of a model on the hub stays.
    """
    before = [part._internal_dict for part in parts]
    try:
        for part, config in zip(parts, before, strict=True):
            if Path(str(config.get("_name_or_path") or "")).exists():
                part._internal_dict = FrozenDict({k: value for k, value in config.items() if k != "_name_or_path"})
        yield
    finally:
        for part, config in zip(parts, before, strict=True):
            part._internal_dict = config
