"""How images and their labels are varied in the training of a segmentation: turned, mirrored, and slightly recoloured.

On the device, a batch at a time; all that is drawn is drawn on the CPU, so that one seed gives one image everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mirrored", "recoloured"]


def mirrored(*images: Tensor) -> tuple[Tensor, ...]:
    """Put images ``(N, ..., y, x)`` into one of the eight positions of a square, each sample alike in all of them."""
    samples = len(images[0])
    draws = torch.rand(3, samples) < 0.5
    found = []
    for image in images:
        along_x, along_y, diagonal = (draw.reshape(-1, *(1,) * (image.ndim - 1)).to(image.device) for draw in draws)
        turned = torch.where(along_x, image.flip(-1), image)
        turned = torch.where(along_y, turned.flip(-2), turned)
        found.append(torch.where(diagonal, turned.transpose(-1, -2), turned))
    return tuple(found)


def recoloured(image: Tensor, valid: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of images a little.

    Parameters
    ----------
    image : Tensor
        ``(N, band, y, x)``, values from 0 on.
    valid : Tensor
        ``(N, y, x)`` bool; elsewhere the image stays 0.
    strength : float
        Each of the three is multiplied by a number from 1 - `strength` to 1 + `strength`, another one for each image.

    Returns
    -------
    Tensor
        Never below 0. Contrast is about the mean of each valid image, saturation about the mean of its bands.
    """
    factors = 1.0 + strength * (2.0 * torch.rand(3, len(image), 1, 1, 1) - 1.0)
    brightness, contrast, saturation = factors.to(image)
    known = valid.unsqueeze(1)
    mean = (image * known).sum((1, 2, 3), keepdim=True) / (
        known.sum((1, 2, 3), keepdim=True) * image.shape[1]
    ).clamp_min(1)
    changed = mean + (image * brightness - mean) * contrast
    grey = changed.mean(1, keepdim=True)
    varied: Tensor = (grey + (changed - grey) * saturation).clamp_min(0.0) * known
    return varied
