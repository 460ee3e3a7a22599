"""The transformer for images (T = 1) and videos, which predicts the equilibrium-matching gradient.

B clips, T frames, C channels, H W height and width, N tokens a frame, D width, K labels, p patch size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # by name: diffusers looks it up in this module on loading
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from eqm_video.core.energy import ENERGIES
from eqm_video.models.inputs import check_inputs
from eqm_video.models.layers import EqMBlock, GammaEmbedding, Head, Modulation, position_table, time_rotation


@dataclass
class EqMOutput(BaseOutput):
    """The result of a network's `forward`.

    sample: (B,T,C,H,W), the raw f, in the dtype of the latents: for an implicit network the field itself, an estimate
        of (noise - clean) * c(gamma).
    hidden: (B,T,N,D), the tokens after the last block, for the dispersive loss.
    """

    sample: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Conditions:
    """The part of a forward pass that labels, times and gamma decide, whatever the latents.

    condition: (B,T,D), or (B,1,D) if all frames have the same. rotation: (2,B,1,1,T,E/2), or None without attention in
    time. modulations: those of every block; head: that of the head. Both are None where each part computes its own.
    """

    condition: Tensor
    rotation: Tensor | None
    modulations: list[tuple[tuple[Tensor, ...], ...]] | None = None
    head: tuple[Tensor, ...] | None = None


Kept = dict[tuple[int, int], Conditions]
"""Conditions of earlier evaluations with the same labels and times, by clips and frames."""


class EqMTransformer(ModelMixin, ConfigMixin):
    """Diffusion transformer with factorised attention in space and time, trained by Equilibrium Matching.

    in_channels: C of the latents. patch_size: p. hidden_size: D, divisible by 4 (positions) and by num_heads.
    depth: blocks. num_heads: heads of both attentions. mlp_ratio: inner width of the MLP over D.
    num_labels: K; label K is the null label, also `.null_label`. temporal: with attention in time; without it there are
    no temporal weights and frames do not see each other. temporal_every: 1, every block has attention in time; 2, every
    second block has it, beginning with the second. conditioned_on_gamma: whether gamma is an input of `forward`;
    the embedder exists either way, and gets 0 if not (Equilibrium Matching, arXiv 2510.02300, section 3.4).
    rope_base: slowest rotary period in time over 2 pi, in reference frames. energy: the meaning of the output f for
    `core.energy.Field`: "implicit", f is the gradient itself; "dot" or "l2", the field is the gradient of an energy
    made of f. It is saved with every export and changes no weight; `forward` returns the raw f in any case.
    """

    keeps_conditions = True  # `forward` takes `kept`
    _supports_gradient_checkpointing = True
    _no_split_modules = ["EqMBlock"]  # noqa: RUF012 (diffusers' own form)
    _repeated_blocks = ["EqMBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["patch_embed", "label_embed", "gamma_embed", "modulation", "head"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_labels: int = 1000,
        temporal: bool = True,
        conditioned_on_gamma: bool = False,
        rope_base: float = 256.0,
        energy: str = "implicit",
        temporal_every: int = 1,
    ) -> None:
        super().__init__()
        if energy not in ENERGIES:
            raise ValueError(f"energy {energy!r} is not one of {', '.join(ENERGIES)}")
        if hidden_size % 4 or hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} must be divisible by 4 and by num_heads {num_heads}")
        if temporal and (hidden_size // num_heads) % 2:
            raise ValueError(
                f"rotary times need heads of even width, but hidden_size {hidden_size} / num_heads {num_heads} = "
                f"{hidden_size // num_heads}; choose other num_heads, or temporal=False"
            )
        if temporal and not 1 <= temporal_every <= depth:
            raise ValueError(f"temporal_every {temporal_every} must be at least 1 and at most the depth {depth}")
        values = patch_size * patch_size * in_channels
        self.null_label = num_labels
        self.gradient_checkpointing = False
        self.patch_embed = nn.Linear(values, hidden_size)
        self.label_embed = nn.Embedding(num_labels + 1, hidden_size)
        self.gamma_embed = GammaEmbedding(hidden_size)
        inner = round(hidden_size * mlp_ratio)
        in_time = [temporal and (number + 1) % temporal_every == 0 for number in range(depth)]
        self.blocks = nn.ModuleList([EqMBlock(hidden_size, num_heads, inner, this) for this in in_time])
        self.head = Head(hidden_size, values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """DiT's initialisation: Xavier for linear layers, 0.02 for embeddings, zero for modulations and the head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (self.label_embed.weight, self.gamma_embed.mlp[0].weight, self.gamma_embed.mlp[2].weight):
            nn.init.normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.head.linear.weight)

    def forward(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        *,
        times: Tensor | None = None,
        gamma: Tensor | None = None,
        kept: Kept | None = None,
    ) -> EqMOutput:
        """Evaluate the raw f. With an explicit energy the field to descend is `core.energy.Field`, not this.

        latents: (B,T,C,H,W), H and W divisible by the patch size. The network computes in its own dtype and returns the
        sample in the latents' dtype, so that a bfloat16 network can serve a float32 descent.
        labels: (B,) integers in 0…K, K being the null label; None is the null label for every clip.
        times: (B,T) real numbers in reference frames; None is 0…T-1. Only differences matter. Unused if T = 1.
        gamma: (B,T) in [0, 1] for a network that is conditioned on gamma, None for any other.
        kept: a dictionary for all evaluations with these labels, times, gamma and weights. The first one leaves there
        what depends on these alone, and the others take it from there; the sample is the same, bit for bit. No
        derivative by the weights that only act there: not for training.
        Raises ValueError for other shapes, and for labels out of range (noticed on the CPU only: reading them on a GPU
        would wait for it).
        """
        check_inputs(self.config, latents, labels, times, gamma)
        rows, columns = (size // self.config.patch_size for size in latents.shape[-2:])
        tokens = self.patch_embed(self._patches(latents.to(self.dtype)))
        tokens = tokens + position_table(rows, columns, self.config.hidden_size, latents.device, self.dtype)
        conditions = self._conditions(latents, labels, times, gamma, kept)
        for number, block in enumerate(self.blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens, conditions.condition, conditions.rotation)
            elif conditions.modulations is None:
                tokens = block(tokens, conditions.condition, conditions.rotation)
            else:
                tokens = block(tokens, conditions.condition, conditions.rotation, conditions.modulations[number])
        sample = self._unpatch(self.head(tokens, conditions.condition, conditions.head), rows, columns)
        return EqMOutput(sample=sample.to(latents.dtype), hidden=tokens)

    def _conditions(
        self, latents: Tensor, labels: Tensor | None, times: Tensor | None, gamma: Tensor | None, kept: Kept | None
    ) -> Conditions:
        """The conditions of a forward pass: those in `kept`, or new ones, which are left there."""
        clips, frames = latents.shape[:2]
        if kept is None:
            condition = self._condition(labels, gamma, clips=clips, device=latents.device)
            return Conditions(condition, self._rotation(times, clips=clips, frames=frames, device=latents.device))
        if (clips, frames) not in kept:
            # An explicit energy differentiates every evaluation: what is kept must not be a part of a graph that is
            # freed after the first, nor a tensor that autograd cannot record.
            with torch.inference_mode(False), torch.no_grad():
                new = self._conditions(latents, labels, times, gamma, None)
                modulations = [block.modulations(new.condition, new.rotation) for block in self.blocks]
                head = self.head.modulation(new.condition)
            kept[clips, frames] = replace(new, modulations=modulations, head=head)
        return kept[clips, frames]

    def _patches(self, latents: Tensor) -> Tensor:
        p = self.config.patch_size
        return rearrange(latents, "b t c (h p) (w q) -> b t (h w) (c p q)", p=p, q=p)

    def _unpatch(self, values: Tensor, rows: int, columns: int) -> Tensor:
        p = self.config.patch_size
        return rearrange(values, "b t (h w) (p q c) -> b t c (h p) (w q)", h=rows, w=columns, p=p, q=p)

    def _condition(self, labels: Tensor | None, gamma: Tensor | None, *, clips: int, device: torch.device) -> Tensor:
        """The sum of label and gamma embedding: (B,T,D), or (B,1,D) if all frames have the same."""
        if labels is None:
            labels = torch.full((clips,), self.null_label, device=device)
        if gamma is None:
            gamma = torch.zeros(1, 1, device=device)
        label_part = self.label_embed(labels.to(device))[:, None]
        return label_part + self.gamma_embed(gamma.to(device), self.dtype)

    def _rotation(self, times: Tensor | None, *, clips: int, frames: int, device: torch.device) -> Tensor | None:
        """Rotary angles of the frames; None without attention in time: spatial networks and single frames."""
        if not self.config.temporal or frames == 1:
            return None
        exact = torch.promote_types(self.dtype, torch.float32)
        if times is None:
            times = torch.arange(frames, device=device).expand(clips, frames)
        return time_rotation(
            times.to(device, exact), self.config.hidden_size // self.config.num_heads, self.config.rope_base
        )
