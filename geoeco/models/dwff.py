"""DWFF-Net: habitats from a frozen vision transformer, whose feature levels are weighted for each image.

Four levels of the encoder are projected, weighted, summed and decoded by plain convolutions. A learned net gives one
weight for each level and image (DWFF); free scalars (SWFF) and the plain sum (NWFF) are the variants it is compared
with. Losses and training are not here.

Source: arXiv 2511.11659 (version 2), and the public code of its authors, sysau/DWFF-Net at 3993441 (MIT), from which
numbers are taken that the paper does not give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from geoeco.errors import InputError
from geoeco.models.backbones import check_name
from geoeco.models.encoder_weights import EncoderWeights, load_encoder

__all__ = ["DWFFNet", "Fusion", "dwff", "tap_blocks"]

Fusion = Literal["dynamic", "static", "none"]

#: Channels of the projected levels, and hidden units of the net that weights them (code of the authors).
_WIDTH = 512
_HIDDEN = 256
#: Channels to a group of every group normalisation (code).
_GROUP = 32
_EPSILON = 1e-6


def tap_blocks(depth: int, taps: int) -> tuple[int, ...]:
    """Blocks of a transformer whose outputs are the feature levels, counted from 0.

    Parameters
    ----------
    depth : int
        Number of blocks.
    taps : int
        1 to 4 levels.

    Returns
    -------
    tuple of int
        Of 24 blocks 0, 7, 15 and 23 (code of the authors: hidden states 1, 8, 16 and the last). Of other depths the
        first block, those at a third and at two thirds (rounded), and the last. Fewer levels are those of the
        authors' comparison: the last; first and last; first, two thirds and last.

    Raises
    ------
    InputError
        If there are not so many different blocks, or `taps` is not 1 to 4.
    """
    if taps not in (1, 2, 3, 4):
        raise InputError(f"taps is {taps}", what_to_do="take 1 to 4 levels of features")
    first, third, two_thirds, last = 0, round(depth / 3) - 1, round(2 * depth / 3) - 1, depth - 1
    chosen = {1: (last,), 2: (first, last), 3: (first, two_thirds, last), 4: (first, third, two_thirds, last)}[taps]
    if len(set(chosen)) < taps or min(chosen) < 0:
        raise InputError(
            f"a transformer of {depth} blocks has no {taps} levels",
            what_to_do="take fewer taps, or a deeper backbone",
        )
    return chosen


class DWFFNet(nn.Module):
    """Habitat segmentation by dynamically weighted fusion of the features of a frozen transformer.

    Parameters
    ----------
    backbone : str
        A plain vision transformer of timm, its patches 4, 8, 16 or 32 pixels: ``"vit_large_patch16_dinov3"``, which
        is the paper's, ``"vit_small_patch16_dinov3"``, ``"vit_tiny_patch16_224"``, ...
    num_classes : int
    fusion : {"dynamic", "static", "none"}
        DWFF: weights by image; SWFF: free scalars that start at .1, .2, .3, .4; NWFF: the plain sum.
    taps : int
        Number of levels, 1 to 4; which blocks these are, says `tap_blocks`.
    in_channels : int
    encoder_weights : str
        ``"random"``; a name of timm's published weights, as ``"vit_large_patch16_dinov3.sat493m"``, which are
        downloaded where they are not in the cache; the path of a local ``.safetensors`` file; or ``"later"`` when the
        caller loads them.

    Attributes
    ----------
    encoder : torch.nn.Module
        Frozen: without gradients, in evaluation mode always.
    weights_of_encoder : EncoderWeights
        Which ones they are.
    stride : int
        Side of a patch: both sides of the images must be multiples of it.
    receptive_radius : None
        The whole image decides about each of its pixels.

    Raises
    ------
    InputError
        If timm has no such network, it is no plain transformer, is not deep enough, or the weights do not fit it.
    TransientError
        If weights cannot be downloaded.

    Notes
    -----
    With F_i the levels, P_i = ReLU(GN(Conv1x1(F_i))), X = sum_i w_i P_i. Dynamic weights: z is the concatenation of the
    global means g_i of P_i, each divided by (its Euclidean norm + 1e-6); s = W2 ReLU(W1 z) + b2; T = softplus(tau) +
    1e-6; w = softmax(s / T).

    The classifier, a convolution of 1 x 1, comes before the last bilinear upsampling, not after it as in the authors'
    code: the two commute, since the weights of a bilinear interpolation sum to one, and it takes 128 / `num_classes`
    times less memory.

    Bilinear upsampling is that of `torch.nn.functional.interpolate` with ``align_corners=False``: neither the paper
    nor the description of the code says.
    """

    receptive_radius: int | None = None

    def __init__(
        self,
        backbone: str = "vit_large_patch16_dinov3",
        num_classes: int = 16,
        fusion: Fusion = "dynamic",
        taps: int = 4,
        in_channels: int = 3,
        *,
        encoder_weights: str = "random",
    ) -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            raise InputError(f"fusion is {fusion!r}", what_to_do=f"use one of: {', '.join(get_args(Fusion))}")
        if num_classes < 2 or in_channels < 1:
            raise InputError(
                f"a network of {num_classes} classes for {in_channels} bands",
                what_to_do="give two classes or more and at least one band",
            )
        self.encoder, patch = _encoder(backbone, in_channels)
        self.blocks = tap_blocks(len(self.encoder.blocks), taps)
        self.stride = patch
        self.fusion: Fusion = fusion
        dim = int(self.encoder.embed_dim)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, _WIDTH, 1, bias=False), _norm(_WIDTH), nn.ReLU(inplace=True))
            for _ in self.blocks
        )
        if fusion == "dynamic":
            self.scores = nn.Sequential(
                nn.Linear(taps * _WIDTH, _HIDDEN, bias=False), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, taps)
            )
            self.tau = nn.Parameter(torch.tensor(1.0))
        elif fusion == "static":
            self.level_scalars = nn.Parameter(torch.arange(1.0, taps + 1) / (taps * (taps + 1) / 2))
        self.context = _conv_block(_WIDTH, 256, 0.2)
        self.detail = _conv_block(256, 128, 0.1)
        self.classifier = nn.Conv2d(128, num_classes, 1)
        self.weights_of_encoder: EncoderWeights = load_encoder(self.encoder, encoder_weights, backbone)
        self.encoder.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; the encoder stays in evaluation."""
        super().train(mode)
        self.encoder.eval()
        return self

    @property
    def temperature(self) -> Tensor:
        """T = softplus(tau) + 1e-6 of the dynamic weights."""
        return functional.softplus(self.tau) + _EPSILON

    def levels(self, images: Tensor) -> list[Tensor]:
        """Projected levels P_i ``(N, 512, y / stride, x / stride)`` of normalised images ``(N, band, y, x)``.

        Raises
        ------
        InputError
            If a side of the images is no multiple of `stride`.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride or not min(height, width):
            raise InputError(
                f"images of {height} x {width} pixels",
                where=f"a network with patches of {self.stride} pixels",
                what_to_do=f"cut windows whose sides are multiples of {self.stride}",
                code="stride",
            )
        return [project(level) for project, level in zip(self.projections, self.taps(images), strict=True)]

    @torch.no_grad()
    def taps(self, images: Tensor) -> list[Tensor]:
        """Levels F_i ``(N, dim, y / stride, x / stride)`` of the encoder, without its prefix tokens.

        Only the last level has gone through the encoder's final normalisation, as the hidden states of
        ``transformers`` that the authors took.
        """
        samples, _, height, width = images.shape
        tokens: Sequence[Tensor] = self.encoder.forward_intermediates(
            images, indices=list(self.blocks), norm=False, output_fmt="NLC", intermediates_only=True
        )
        normalised = [*tokens[:-1], _final_norm(self.encoder)(tokens[-1])]
        rows, columns = height // self.stride, width // self.stride
        return [level.transpose(1, 2).reshape(samples, -1, rows, columns) for level in normalised]

    def level_weights(self, images: Tensor) -> Tensor:
        """Weights ``(N, level)`` of the levels of normalised images ``(N, band, y, x)``."""
        return self.weigh(self.levels(images))

    def weigh(self, levels: Sequence[Tensor]) -> Tensor:
        """Weights ``(N, level)`` of projected levels ``(N, 512, h, w)``; they sum to one in DWFF only."""
        samples = levels[0].shape[0]
        if self.fusion == "none":
            return levels[0].new_ones(samples, len(levels))
        if self.fusion == "static":
            return self.level_scalars.expand(samples, -1)
        means = [level.mean(dim=(2, 3)) for level in levels]
        unit = torch.cat([mean / (mean.norm(dim=1, keepdim=True) + _EPSILON) for mean in means], dim=1)
        return torch.softmax(self.scores(unit) / self.temperature, dim=1)

    def decode(self, levels: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, class, y, x)`` and fused features ``(N, 512, h, w)`` of weighted levels."""
        shape = (-1, 1, 1, 1)
        fused = levels[0] * weights[:, 0].reshape(shape)
        for number, level in enumerate(levels[1:], start=1):
            fused = fused + level * weights[:, number].reshape(shape)
        steps = self.stride.bit_length() - 1
        detail = self.detail(_doubled(self.context(fused), min(steps, 2)))
        return _doubled(self.classifier(detail), steps - min(steps, 2)), fused

    def with_features(self, images: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits, and the features that the area of applicability looks at.

        Parameters
        ----------
        images : Tensor
            ``(N, band, y, x)``, normalised.
        weights : Tensor, optional
            ``(N, level)`` or ``(level,)``: weights of the levels, for example the mean over a scene, in place of those
            of each image.

        Returns
        -------
        logits : Tensor
            ``(N, class, y, x)``.
        features : Tensor
            ``(N, 512, y / stride, x / stride)``, the fused levels.
        """
        levels = self.levels(images)
        given = self.weigh(levels) if weights is None else weights.to(levels[0]).expand(len(images), len(levels))
        return self.decode(levels, given)

    def with_weights(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, class, y, x)`` and the weights ``(N, level)`` that went into them, for the loss."""
        levels = self.levels(images)
        weights = self.weigh(levels)
        return self.decode(levels, weights)[0], weights

    def forward(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Logits ``(N, class, y, x)``; arguments as of `with_features`."""
        return self.with_features(images, weights)[0]


def dwff(
    backbone: str = "vit_large_patch16_dinov3",
    num_classes: int = 16,
    fusion: str = "dynamic",
    taps: int = 4,
    in_channels: int = 3,
) -> DWFFNet:
    """Create a `DWFFNet` whose weights, those of the encoder too, are loaded by the caller."""
    return DWFFNet(backbone, num_classes, fusion, taps, in_channels, encoder_weights="later")  # type: ignore[arg-type]


def _encoder(name: str, in_channels: int) -> tuple[Any, int]:
    """A plain transformer that takes images of any size, and the side of its patches."""
    check_name(name)
    not_plain = InputError(
        "the network is no plain vision transformer",
        where=name,
        what_to_do="name one whose blocks all work on one grid of patches: vit_..., deit..., eva02_..., ...",
    )
    try:
        network: Any = timm.create_model(name, in_chans=in_channels, num_classes=0, dynamic_img_size=True)
    except TypeError as error:
        raise not_plain from error
    if not isinstance(network, VisionTransformer | Eva) or type(network.patch_embed) is not PatchEmbed:
        raise not_plain
    height, width = network.patch_embed.patch_size
    if height != width or height not in (4, 8, 16, 32):
        raise InputError(
            f"the patches of the network are {height} x {width} pixels",
            where=name,
            what_to_do="take one with square patches of 4, 8, 16 or 32 pixels: the decoder doubles",
        )
    return network, int(height)


def _final_norm(encoder: Any) -> nn.Module:
    """Normalisation after the last block; transformers that average their tokens keep it elsewhere."""
    norm: nn.Module = encoder.fc_norm if isinstance(encoder.norm, nn.Identity) else encoder.norm
    return norm


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _GROUP, channels)


def _conv_block(channels: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        _norm(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        _norm(width),
        nn.ReLU(inplace=True),
    )


def _doubled(image: Tensor, times: int) -> Tensor:
    for _ in range(times):
        image = functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    return image
