"""The only door to segmentation-models-pytorch: its networks with what mapping asks of a network.

Their weights are random: nothing is downloaded. How far each pixel sees is computed from the network itself, since no
table has it.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from geoeco.errors import InputError

__all__ = ["SMP_MODELS", "SmpSegmenter", "receptive_radius"]

#: Decoders that are offered; all take windows whose sides are multiples of the encoder's stride.
SMP_MODELS = ("Unet", "UnetPlusPlus", "DeepLabV3Plus", "FPN", "Linknet", "MAnet", "Segformer", "UPerNet")
#: Layers whose view is known: through others, attention and means over the image above all, it is not traced.
_TRACED = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Upsample),
    nn.UpsamplingBilinear2d,
)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)
#: Pixels along the strips on which views are traced.
_STRIPS = (1024, 4096)


class SmpSegmenter(nn.Module):
    """A network of segmentation-models-pytorch with random weights.

    Parameters
    ----------
    model : str
        One of `SMP_MODELS`.
    encoder : str
        An encoder that the library knows, as ``"resnet18"`` or ``"tu-convnext_tiny"``.
    in_channels, num_classes : int

    Attributes
    ----------
    network : torch.nn.Module
    stride : int
        Both sides of the images must be multiples of it; 32 for most encoders.

    Raises
    ------
    InputError
        If the library does not know the decoder or encoder, or they do not go together.
    """

    def __init__(
        self, model: str = "Unet", encoder: str = "resnet18", in_channels: int = 3, num_classes: int = 2
    ) -> None:
        super().__init__()
        if model not in SMP_MODELS:
            raise InputError(f"there is no decoder {model!r}", what_to_do=f"use one of: {', '.join(SMP_MODELS)}")
        if in_channels < 1 or num_classes < 2:
            raise InputError(
                f"a network of {num_classes} classes for {in_channels} bands",
                what_to_do="give two classes or more and at least one band",
            )
        try:
            self.network: Any = getattr(smp, model)(
                encoder_name=encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes
            )
        # the library's own errors for unknown names and pairs that do not fit
        except (KeyError, ValueError, NotImplementedError, TypeError, RuntimeError) as error:
            raise InputError(
                f"segmentation-models-pytorch cannot make {model} with the encoder {encoder!r}: {str(error)[:300]}",
                what_to_do="see its list of encoders for their names",
            ) from error
        self.model, self.encoder = model, encoder
        self.stride = int(self.network.encoder.output_stride)

    @property
    def receptive_radius(self) -> int | None:
        """How far a pixel sees, pixels; None where it sees everything, or it is not known."""
        return _radius_of(self.model, self.encoder)

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, class, y, x)`` and the encoder's last features ``(N, C, y / stride, x / stride)``.

        Raises
        ------
        InputError
            If a side of the images is no multiple of `stride`.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride or not min(height, width):
            raise InputError(
                f"images of {height} x {width} pixels",
                where=f"a network that halves its images to one of {self.stride}",
                what_to_do=f"cut windows whose sides are multiples of {self.stride}",
                code="stride",
            )
        features = self.network.encoder(images)
        return self.network.segmentation_head(self.network.decoder(features)), features[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, class, y, x)`` of normalised images ``(N, band, y, x)``."""
        return self.with_features(images)[0]


@functools.lru_cache(maxsize=32)
def _radius_of(model: str, encoder: str) -> int | None:
    with torch.random.fork_rng(devices=[]), torch.inference_mode(mode=False):
        return receptive_radius(SmpSegmenter(model, encoder, 1, 2), 32)


def receptive_radius(network: nn.Module, stride: int) -> int | None:
    """How far the pixels of a convolutional network see.

    Parameters
    ----------
    network : torch.nn.Module
        ``(N, band, y, x)`` to ``(N, class, y, x)``. Left as it is.
    stride : int
        Of the network: all positions within one stride are looked at.

    Returns
    -------
    int or None
        Pixels, at most `stride` - 1 too many: an input further away from an output changes nothing. None where the
        output depends on the whole image, or a layer is of a kind that is not traced.

    Notes
    -----
    All weights are set to one sign and pooling to averages, so that no path cancels; the gradient of one stride of
    outputs with respect to a strip of ones, one stride high, is then other than 0 exactly where the outputs look
    (Luo et al. 2016, Understanding the effective receptive field, section 2). Sides are alike in y and x.
    """
    leaves = [module for module in network.modules() if not next(module.children(), None)]
    if not all(isinstance(leaf, _TRACED) for leaf in leaves):
        return None
    traced = _positive(copy.deepcopy(network).double().eval())
    bands = next(module.in_channels for module in traced.modules() if isinstance(module, nn.Conv2d))
    for length in _STRIPS:
        strip = torch.ones(1, bands, stride, length, dtype=torch.float64, requires_grad=True)
        first = length // 2 // stride * stride
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(traced(strip)[..., first : first + stride].sum(), strip)
        seen = torch.nonzero(gradient.abs().sum(dim=(0, 1, 2)))
        low, high = int(seen.min()), int(seen.max())
        if low > 0 and high < length - 1:
            return max(first + stride - 1 - low, high - first)
    return None


def _positive(network: nn.Module) -> nn.Module:
    """Weights of one sign that keep ones at ones, averages for maxima, no activation or scaling: views stay."""
    for name, module in list(network.named_children()):
        if isinstance(module, nn.MaxPool2d):
            setattr(network, name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
        elif isinstance(module, (*_ACTIVATIONS, nn.BatchNorm2d)):
            setattr(network, name, nn.Identity())
        else:
            _positive(module)
    if isinstance(network, nn.Conv2d | nn.ConvTranspose2d):
        with torch.no_grad():
            network.weight.fill_(1.0 / math.prod(network.weight.shape[1:]))
            if network.bias is not None:
                network.bias.zero_()
    return network
