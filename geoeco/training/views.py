"""Views of season chips for contrastive learning: crops, colours and blur for whole batches, on their device.

Reflectance in, reflectance out: scaling to what a network takes in comes after the views, and choosing the dates comes
before them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from kornia.augmentation import RandomGaussianBlur, RandomHorizontalFlip, RandomResizedCrop
from torch import Tensor, nn

from geoeco.errors import InputError

__all__ = ["FourViews", "MoCoViews", "SeasonViews"]

NDVI = "ndvi"
RED, NIR = "B04", "B08"
NdviRule = Literal["recompute", "jitter", "leave"]


class FourViews(NamedTuple):
    """The query and the keys of `geoeco.models.SeCo`, each ``(N, band, size, size)`` float32."""

    q: Tensor
    k0: Tensor
    k1: Tensor
    k2: Tensor


class _DateViews(nn.Module):
    """Views of one date: cropped only, or augmented as well."""

    def __init__(
        self,
        bands: Sequence[str],
        *,
        size: int = 224,
        scale: tuple[float, float] = (0.2, 1.0),
        ndvi: NdviRule = "recompute",
        colour: float = 0.4,
        colour_probability: float = 0.8,
        grey_probability: float = 0.2,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_probability: float = 0.5,
        flip_probability: float = 0.5,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "bands": tuple(bands),
            "size": size,
            "scale": tuple(scale),
            "ndvi": ndvi,
            "colour": colour,
            "colour_probability": colour_probability,
            "grey_probability": grey_probability,
            "blur_sigma": tuple(blur_sigma),
            "blur_probability": blur_probability,
            "flip_probability": flip_probability,
        }
        _check_settings(self.settings)
        self._places = {band: place for place, band in enumerate(bands)}
        self._recomputes = NDVI in self._places and ndvi == "recompute"
        sources = [band for band in (RED, NIR) if band in self._places] or [band for band in bands if band != NDVI]
        self._index_sources = [self._places[band] for band in sources] if NDVI in self._places else []
        coloured = torch.tensor([band != NDVI or ndvi == "jitter" for band in bands])
        self.register_buffer("_coloured", coloured.view(-1, 1, 1), persistent=False)
        self._blur_radius = math.ceil(3 * blur_sigma[1])
        width = 2 * self._blur_radius + 1
        self._blur = RandomGaussianBlur((width, width), tuple(blur_sigma), p=blur_probability)
        self._flip = RandomHorizontalFlip(p=flip_probability)
        # the other mode of kornia crops sample by sample
        self._crop = RandomResizedCrop((size, size), scale=tuple(scale), cropping_mode="resample")

    def extra_repr(self) -> str:
        """Return the settings, for a print of the module."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())

    def pixel_sizes(self, side: int, resolution: float = 10.0) -> tuple[float, float]:
        """Return the finest and the coarsest pixel of square crops of chips of `side` pixels.

        Crops of different size that are brought to one size differ in resolution: worth a line in the log.

        Parameters
        ----------
        side : int
            Side of the chips, pixels.
        resolution : float
            Their pixel size, metres.

        Returns
        -------
        tuple of float
            Metres.
        """
        smallest, largest = (math.sqrt(share) for share in self.settings["scale"])
        metres = side * resolution / self.settings["size"]
        return smallest * metres, largest * metres

    def check_chips(self, side: int) -> None:
        """Refuse chips of fewer pixels along a side than the blur reaches.

        Raises
        ------
        InputError
            If they are too small.
        """
        if side <= self._blur_radius:
            raise InputError(
                f"chips of {side} x {side} pixels are too small to blur",
                where="views",
                what_to_do=f"use chips of more than {self._blur_radius} pixels, or a smaller blur_sigma",
            )

    def _dates(self, image: Tensor, needed: int) -> Tensor:
        bands = len(self._places)
        fits = image.ndim == 5 and len(image) and image.shape[1] >= needed and image.shape[2] == bands
        if not fits or not image.is_floating_point():
            raise InputError(
                f"a batch of {image.dtype} and shape {tuple(image.shape)}",
                where="views",
                what_to_do=f"give reflectance (N, {needed}, {bands}, y, x) as floats, N at least 1",
            )
        self.check_chips(min(image.shape[-2:]))
        return image.float()

    def _augmented(self, image: Tensor) -> Tensor:
        known = self._known(image)
        blurred = self._blur(self._recoloured(image, known)) * known
        augmented: Tensor = self._crop(self._flip(blurred))
        return augmented

    def _known(self, image: Tensor) -> Tensor:
        """Return where each band ``(N, band, y, x)`` has data; the index has it where its bands have."""
        known = image != 0
        if self._index_sources:
            known[:, self._places[NDVI]] = known[:, self._index_sources].all(1)
        return known

    def _recoloured(self, image: Tensor, known: Tensor) -> Tensor:
        colour = self.settings["colour"]
        # drawn on the CPU, as kornia draws: one seed gives one view on every device
        jitter, grey, brightness, contrast = torch.rand(4, len(image), 1, 1, 1)
        jittered = jitter < self.settings["colour_probability"]
        brightness = torch.where(jittered, 1 + colour * (2 * brightness - 1), 1.0).to(image.device)
        contrast = torch.where(jittered, 1 + colour * (2 * contrast - 1), 1.0).to(image.device)
        greyed = (grey < self.settings["grey_probability"]).to(image.device)
        mean = image.sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
        recoloured = ((image - mean) * contrast + mean) * brightness * known
        coloured = self.get_buffer("_coloured")
        mean_band = (recoloured * coloured).sum(1, keepdim=True) / coloured.sum()
        recoloured = torch.where(coloured, torch.where(greyed, mean_band, recoloured), image)
        if self._recomputes:
            # jitter may have brought dark bands below zero, where the index means nothing
            red, nir = (recoloured[:, self._places[band]].clamp(min=0) for band in (RED, NIR))
            total = red + nir
            # a band without data does not count as dark
            index = torch.where(known[:, self._places[NDVI]] & (total > 0), (nir - red) / total, 0.0)
            recoloured[:, self._places[NDVI]] = index
        return recoloured


class SeasonViews(_DateViews):
    """The four views of season contrast: a query and three keys from three dates of each location.

    ==== ==== =========== =====
    view date augmented   crop
    ==== ==== =========== =====
    q    0    no          yes
    k0   1    yes         yes
    k1   2    no          yes
    k2   0    yes         yes
    ==== ==== =========== =====

    Augmented is: brightness and contrast (about the mean of each band), grey (the mean of the bands in each band),
    blur, horizontal flip, each with its probability, drawn for each sample by itself. The crop has a random place,
    area and aspect (3:4 to 4:3), drawn anew for each view, and is brought to `size`.

    Parameters
    ----------
    bands : sequence of str
        Bands of the images in order, ``"ndvi"`` for the vegetation index.
    size : int
        Side of the views, pixels.
    scale : tuple of float
        Smallest and largest area of a crop, as a share of the image.
    ndvi : {"recompute", "jitter", "leave"}
        What becomes of the band ``"ndvi"`` where colours change. ``"recompute"``: it is the index of the changed B04
        and B08 (0 where both are 0, negative reflectance counted as 0), so that a view's colours agree with each other;
        in a grey view it is 0, as the index of equal bands is. ``"jitter"``: it is treated as reflectance, as
        SSL4Eco's code does. ``"leave"``: it stays as it is, in grey views too. Blur, flips and crops treat it as any
        band.
    colour : float
        Brightness and contrast are multiplied by values between 1 - `colour` and 1 + `colour`.
    colour_probability, grey_probability, blur_probability, flip_probability : float
        Share of samples that are jittered in colour, made grey, blurred, flipped.
    blur_sigma : tuple of float
        Smallest and largest standard deviation of the blur, pixels of the image.

    Attributes
    ----------
    settings : dict
        All of the above, to be logged and kept with a model.

    Raises
    ------
    InputError
        If a setting is out of range, or the bands lack those that the index is computed from.

    Notes
    -----
    A band that is exactly 0 is without data there: such pixels do not count in the mean about which contrast is
    changed, and stay 0 through colours and blur. All draws come from torch's generator of the CPU;
    `torch.manual_seed` before a call repeats it, on any device to rounding. Views are made in float32 whatever
    autocast says, without gradients, in training and evaluation alike.

    References
    ----------
    Manas et al. (2021), Seasonal contrast, ICCV, section 3. Plekhanova et al. (2025), SSL4Eco, arXiv 2504.18256: the
    defaults are those of its code.
    """

    @torch.no_grad()
    def forward(self, image: Tensor) -> FourViews:
        """Make the views of a batch.

        Parameters
        ----------
        image : Tensor
            ``(N, 3, band, y, x)`` reflectance in 0..1, 0 where invalid: three distinct dates of each location, or of
            two dates the second one twice.

        Returns
        -------
        FourViews
            ``q, k0, k1, k2``.

        Raises
        ------
        InputError
            If the batch is of another shape, not floating, or its chips are too small to blur.
        """
        first, second, third = self._dates(image, 3)[:, :3].unbind(1)
        with torch.autocast(image.device.type, enabled=False):
            return FourViews(self._crop(first), self._augmented(second), self._crop(third), self._augmented(first))


class MoCoViews(_DateViews):
    """The two views of MoCo on season chips: two dates of each location, both augmented.

    Parameters, attributes, errors and notes as in `SeasonViews`.
    """

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Make the query and the key, each ``(N, band, size, size)`` float32.

        Parameters
        ----------
        image : Tensor
            ``(N, 2 or more, band, y, x)`` as in `SeasonViews`; the first two dates are used.
        """
        first, second = self._dates(image, 2)[:, :2].unbind(1)
        with torch.autocast(image.device.type, enabled=False):
            return self._augmented(first), self._augmented(second)


def _check_settings(settings: dict[str, Any]) -> None:
    bands = settings["bands"]
    if not bands or len(set(bands)) < len(bands):
        raise InputError(f"bands are {list(bands)}", where="views", what_to_do="name each band once")
    if settings["ndvi"] not in get_args(NdviRule):
        raise InputError(
            f"ndvi is {settings['ndvi']!r}", where="views", what_to_do=f"use one of {', '.join(get_args(NdviRule))}"
        )
    missing = [band for band in (RED, NIR) if band not in bands]
    if NDVI in bands and settings["ndvi"] == "recompute" and missing:
        raise InputError(
            f"the index cannot be computed anew without {' and '.join(missing)}",
            where="views",
            what_to_do="add the bands, or choose ndvi='jitter' or 'leave'",
        )
    shares = [name for name in settings if name.endswith("_probability") or name == "colour"]
    wrong = [f"{name} is {settings[name]}" for name in shares if not 0 <= settings[name] <= 1]
    if settings["size"] < 1:
        wrong.append(f"size is {settings['size']}")
    for name, largest in (("scale", 1.0), ("blur_sigma", math.inf)):
        low, high = settings[name]
        if not 0 < low <= high <= largest:
            wrong.append(f"{name} is {settings[name]}")
    if wrong:
        raise InputError(
            "; ".join(wrong),
            where="views",
            what_to_do="shares lie between 0 and 1, sizes and sigmas above 0, the smaller of a pair first",
        )
