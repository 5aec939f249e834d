"""Seasonal contrast (SeCo): momentum contrast in three spaces that differ in what they are invariant to."""

from __future__ import annotations

from torch import Tensor, nn

from geoeco.models.contrast import ContrastiveLoss, MomentumContrast

__all__ = ["SeCo"]


class SeCo(MomentumContrast):
    """Seasonal contrast: one backbone and three heads, each invariant to another part of what makes views differ.

    ==== ============================ ======== ====================================================
    head invariant to                 positive negatives
    ==== ============================ ======== ====================================================
    0    season and augmentation      k0       queue 0
    1    season                       k1       queue 1; head 1 of all k0 and k2 of the batch
    2    augmentation                 k2       queue 2; head 2 of all k0 and k1 of the batch
    ==== ============================ ======== ====================================================

    with the query q (date 0), k0 (date 1, augmented), k1 (date 2, not augmented) and k2 (date 0, augmented).

    Parameters
    ----------
    backbone : str or torch.nn.Module
        Name of a network as in `create_backbone`, or a module ``(N, band, y, x)`` to ``(N, num_features)`` with an
        attribute ``num_features``. The key branch starts as its copy: weights to start from are loaded before.
    in_channels : int
        Number of bands of a backbone that is given by name.
    dim : int
        Length of the projections.
    queue_size : int
        Keys a queue holds; a multiple of the batch size.
    momentum : float
        Share of itself that the key branch keeps in a step.
    temperature : float
        Divides the similarities. SSL4Eco's paper points to SeCo's 0.07, the command its authors publish for the
        released weights says 0.2, and so does MoCo v2; 0.2 is the default, so that `MoCo` and `SeCo` differ in
        their heads only.

    Attributes
    ----------
    backbone, heads, key_backbone, key_heads, queue, queue_pointer, num_features
        The query branch, the key branch, the queues, the length of the features; see the base class.

    Raises
    ------
    InputError
        If a setting is out of range or the backbone does not tell its ``num_features``.

    Notes
    -----
    Calling the module gives the features of the query backbone, which are what is used afterwards. The parameters
    to be optimised are those that require gradients. All state lies in the ``state_dict``: a model that was stored goes
    on as if it had not been. One process only: queues are not shared between devices. Where the backbone splits its
    batch normalisation, the keys are shuffled before they are encoded.

    References
    ----------
    Manas et al. (2021), Seasonal contrast, ICCV. Plekhanova et al. (2025), SSL4Eco, CVPR workshops, arXiv 2504.18256.
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
            3, backbone, in_channels, dim=dim, queue_size=queue_size, momentum=momentum, temperature=temperature
        )

    def loss(self, q: Tensor, k0: Tensor, k1: Tensor, k2: Tensor) -> ContrastiveLoss:
        """Take one step of contrast.

        In training the key branch first moves towards the query branch, the keys are encoded, each view in a pass of
        its own, and each head puts its positive keys in its queue. In evaluation nothing of that state changes.

        Parameters
        ----------
        q, k0, k1, k2 : Tensor
            ``(N, band, y, x)``, the query and the three keys.

        Returns
        -------
        ContrastiveLoss
            The sum of the three cross-entropies, each of them, and the accuracies.

        Raises
        ------
        InputError
            If the views are not of one shape, or in training the queue is no multiple of the batch.
        """
        return self._contrast(q, (k0, k1, k2))
