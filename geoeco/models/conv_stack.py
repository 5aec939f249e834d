"""A stack of plain convolutions: the smallest segmentation network, whose view is exactly known."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from geoeco.errors import InputError

__all__ = ["ConvStack"]


class ConvStack(nn.Module):
    """Convolutions with rectified outputs, and a classifier of 1 x 1.

    Parameters
    ----------
    in_channels, num_classes : int
    width : int
        Channels between the convolutions.
    layers : int
        Number of convolutions.
    kernel : int
        Their side, odd.

    Attributes
    ----------
    stride : int
        1: images may have any size.
    receptive_radius : int
        ``layers * (kernel // 2)`` pixels: what lies further away does not change a pixel.

    Raises
    ------
    InputError
        If a number is out of range.

    Notes
    -----
    The image is continued once by its outermost pixels, `receptive_radius` wide, and the convolutions pad nothing: no
    zeros come in between the layers. A pixel that lies at least `receptive_radius` inside a window has exactly the
    value that it has in the whole image; one nearer to the border sees copies of the border instead.
    """

    stride: int = 1

    def __init__(
        self, in_channels: int = 3, num_classes: int = 2, width: int = 16, layers: int = 3, kernel: int = 3
    ) -> None:
        super().__init__()
        if min(in_channels, width, layers) < 1 or num_classes < 2 or kernel < 1 or kernel % 2 == 0:
            raise InputError(
                f"a stack of {layers} convolutions of {kernel} x {kernel} and {width} channels, "
                f"{in_channels} bands to {num_classes} classes",
                what_to_do="give an odd kernel, two classes or more, and at least one of the others",
            )
        self.receptive_radius = layers * (kernel // 2)
        stack: list[nn.Module] = []
        for layer in range(layers):
            stack += [nn.Conv2d(width if layer else in_channels, width, kernel), nn.ReLU(inplace=True)]
        self.stack = nn.Sequential(*stack)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, class, y, x)`` and last features ``(N, width, y, x)`` of normalised images."""
        margin = (self.receptive_radius,) * 4
        features = self.stack(functional.pad(images, margin, mode="replicate"))
        return self.classifier(features), features

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, class, y, x)`` of normalised images ``(N, band, y, x)``."""
        return self.with_features(images)[0]
