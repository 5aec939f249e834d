"""Momentum contrast with one head (MoCo v2): the control of season-contrastive learning."""

from __future__ import annotations

from torch import Tensor, nn

from geoeco.models.contrast import ContrastiveLoss, MomentumContrast

__all__ = ["MoCo"]


class MoCo(MomentumContrast):
    """MoCo v2: one head, one key, the queue as negatives.

    On season chips (MoCo-Eco of SSL4Eco) query and key are two dates of a location, both fully augmented: the features
    are to be invariant to season and augmentation alike.

    Parameters and attributes as in `SeCo`.

    References
    ----------
    Chen, Fan, Girshick & He (2020), Improved baselines with momentum contrastive learning, arXiv 2003.04297.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        in_channels: int = 9,
        *,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
    ) -> None:
        super().__init__(
            1, backbone, in_channels, dim=dim, queue_size=queue_size, momentum=momentum, temperature=temperature
        )

    def loss(self, q: Tensor, k: Tensor) -> ContrastiveLoss:
        """Take one step of contrast between views of two dates; see `SeCo.loss`.

        Parameters
        ----------
        q, k : Tensor
            ``(N, band, y, x)``, the query and its key.
        """
        return self._contrast(q, (k,))
