"""The network for small images in pixel space: a convolutional U-Net behind the interface of the transformer.

B clips, T frames (always 1), C channels, H W height and width, N positions of the middle block, D width, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # by name: diffusers looks it up in this module on loading
from einops import rearrange
from torch import Tensor, nn

from eqm_video.core.energy import ENERGIES
from eqm_video.models.inputs import check_inputs
from eqm_video.models.layers import GammaEmbedding
from eqm_video.models.transformer import EqMOutput


class EqMUNet(ModelMixin, ConfigMixin):
    """ADM's U-Net (arXiv 2105.05233), as Equilibrium Matching uses it for CIFAR-10; the defaults are that setting.

    in_channels: C of the latents, 3 for pixels. patch_size: the divisor of H and W, 2^(levels - 1); it follows from the
    levels, but every network has it in its config. base_channels: unit of the multipliers, the width of each level.
    depth: residual blocks of a level (one more on the way up).
    attention_levels: levels with attention, 0 being the full resolution; the middle block always has it. dropout:
    inside the residual blocks. norm_groups: groups of every group norm. num_labels: K; label K is the null label, also
    `.null_label`. temporal: must be False, frames never meet. conditioned_on_gamma, energy: as in EqMTransformer.

    The blocks are those of diffusers' UNet2DModel, set up as ADM's: the condition scales and shifts the second norm of
    a residual block, and attention has a single head, and a norm in the middle block too. Two things have no option in
    UNet2DModel and are changed afterwards: resizing has no weights (average and nearest neighbour), and the last layer
    of every residual and attention branch, and of the network, starts at zero. With the same weights the network equals
    the U-Net of Meta's flow_matching examples, whose CIFAR-10 setting the paper uses; only the layout of the weights
    differs (queries, keys and values are three maps).
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm", "embed", "conv_in", "conv_out"]  # noqa: RUF012 (diffusers' own form)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        patch_size: int = 4,
        base_channels: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        depth: int = 4,
        attention_levels: Sequence[int] = (1,),
        dropout: float = 0.3,
        norm_groups: int = 32,
        num_labels: int = 10,
        temporal: bool = False,
        conditioned_on_gamma: bool = False,
        energy: str = "implicit",
    ) -> None:
        from diffusers import UNet2DModel  # here and below when needed: all networks of diffusers come with it

        super().__init__()
        if temporal:
            raise ValueError(
                "the U-Net is an image network, frames do not see each other in it: use temporal=False, in a recipe "
                "model.temporal=false"
            )
        if energy not in ENERGIES:
            raise ValueError(f"energy {energy!r} is not one of {', '.join(ENERGIES)}")
        _check_sizes(patch_size, base_channels, multipliers, attention_levels, norm_groups)
        # Lists, as a loaded config has them: two configs of the same network must be equal.
        self.register_to_config(multipliers=list(multipliers), attention_levels=list(attention_levels))
        width = 4 * base_channels
        body = UNet2DModel(
            in_channels=in_channels,
            out_channels=in_channels,
            block_out_channels=tuple(base_channels * factor for factor in multipliers),
            down_block_types=_types("{}DownBlock2D", len(multipliers), attention_levels),
            up_block_types=_types("{}UpBlock2D", len(multipliers), attention_levels)[::-1],
            layers_per_block=depth,
            dropout=dropout,
            attention_head_dim=None,  # a single head
            norm_num_groups=norm_groups,
            attn_norm_num_groups=norm_groups,
            resnet_time_scale_shift="scale_shift",
            time_embedding_dim=width,
        )
        self.null_label = num_labels
        self.label_embed = nn.Embedding(num_labels + 1, width)
        self.gamma_embed = GammaEmbedding(width, sinusoids=base_channels)
        self.conv_in = body.conv_in
        self.down_blocks, self.mid_block, self.up_blocks = body.down_blocks, body.mid_block, body.up_blocks
        self.norm_out, self.conv_out = body.conv_norm_out, body.conv_out
        _resize_without_weights(self.blocks)
        self.reset_parameters()

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated parts, from input to output; each can be compiled as a whole."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def reset_parameters(self) -> None:
        """ADM's initialisation: every residual and attention branch adds nothing, and the output is zero."""
        from diffusers.models.attention_processor import Attention
        from diffusers.models.resnet import ResnetBlock2D

        nn.init.normal_(self.label_embed.weight, std=0.02)
        branches = [module.conv2 for module in self.modules() if isinstance(module, ResnetBlock2D)]
        branches += [module.to_out[0] for module in self.modules() if isinstance(module, Attention)]
        for layer in (*branches, self.conv_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, latents: Tensor, labels: Tensor | None = None, *, times: Tensor | None = None, gamma: Tensor | None = None
    ) -> EqMOutput:
        """Evaluate the raw f. With an explicit energy the field to descend is `core.energy.Field`, not this.

        latents: (B,1,C,H,W), H and W divisible by `config.patch_size`; the network computes in its own dtype and
        returns the sample in the latents' dtype. labels: (B,) integers in 0…K; None is the null label K for every clip.
        times: (B,1) or None, unused: an image has no other frame. gamma: (B,1) in [0, 1] for a network that is
        conditioned on gamma, None for any other. `hidden` of the result is the middle block's output (B,1,N,D).
        Raises ValueError for other shapes, and for labels out of range (noticed on the CPU only).
        """
        check_inputs(self.config, latents, labels, times, gamma)
        if latents.shape[1] != 1:
            raise ValueError(f"the U-Net takes images, clips of 1 frame, not of {latents.shape[1]}: use a transformer")
        condition = self._condition(labels, gamma, clips=latents.shape[0], device=latents.device)
        hidden = self.conv_in(latents[:, 0].to(self.dtype))
        skips = [hidden]
        for block in self.down_blocks:
            hidden, passed = block(hidden, condition)
            skips += passed
        hidden = middle = self.mid_block(hidden, condition)
        for block in self.up_blocks:
            count = len(block.resnets)
            hidden = block(hidden, tuple(skips[-count:]), condition)
            del skips[-count:]
        sample = self.conv_out(nn.functional.silu(self.norm_out(hidden)))
        return EqMOutput(sample=sample[:, None].to(latents.dtype), hidden=rearrange(middle, "b d h w -> b 1 (h w) d"))

    def _condition(self, labels: Tensor | None, gamma: Tensor | None, *, clips: int, device: torch.device) -> Tensor:
        """The sum of label and gamma embedding: (B, 4 x base_channels)."""
        if labels is None:
            labels = torch.full((clips,), self.null_label, device=device)
        gamma = torch.zeros(1, device=device) if gamma is None else gamma[:, 0].to(device)
        return self.label_embed(labels.to(device)) + self.gamma_embed(gamma, self.dtype)


def _check_sizes(
    patch_size: int,
    base_channels: int,
    multipliers: Sequence[int],
    attention_levels: Sequence[int],
    norm_groups: int,
) -> None:
    """ValueError for sizes that do not go together."""
    levels = len(multipliers)
    if patch_size != 2 ** (levels - 1):
        raise ValueError(f"{levels} levels halve the image {levels - 1} times: patch_size must be {2 ** (levels - 1)}")
    if any(level not in range(levels) for level in attention_levels):
        raise ValueError(f"attention_levels {list(attention_levels)} must be among the levels 0 to {levels - 1}")
    if base_channels % norm_groups or base_channels % 2:
        raise ValueError(f"base_channels {base_channels} must be even and divisible by norm_groups {norm_groups}")


def _types(name: str, levels: int, attention_levels: Sequence[int]) -> tuple[str, ...]:
    """The names of the blocks in diffusers, from the full resolution down."""
    return tuple(name.format("Attn" if level in attention_levels else "") for level in range(levels))


def _resize_without_weights(blocks: Sequence[nn.Module]) -> None:
    """Replace the resizing convolutions by average pooling and nearest neighbours; UNet2DModel has no option for it."""
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.upsampling import Upsample2D

    for block in blocks:
        for name, layer in (("downsamplers", Downsample2D), ("upsamplers", Upsample2D)):
            resizers = getattr(block, name, None)
            if resizers is not None:
                setattr(block, name, nn.ModuleList([layer(old.channels, use_conv=False) for old in resizers]))
