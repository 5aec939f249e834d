"""Finding crowns as objects: Mask R-CNN, or Faster R-CNN where boxes will do, on a feature pyramid of a ResNet.

He et al. 2017 (Mask R-CNN, arXiv 1703.06870), Ren et al. 2015 (Faster R-CNN) and Lin et al. 2017 (feature pyramids), of
torchvision's parts, with an encoder of timm for any number of bands. Images come normalised and are never resized:
crowns have a size on the ground. Anchors are given in pixels, so that they fit it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from geoeco.errors import InputError

__all__ = ["CrownDetector", "FoundObjects"]

#: Pixels of an image for one cell of each of the four levels of the encoder.
_STRIDES = (4, 8, 16, 32)
_GROUPS = 8


class FoundObjects(NamedTuple):
    """What is found on one image, by descending score.

    Attributes
    ----------
    boxes : torch.Tensor
        ``(object, 4)``: left, top, right, bottom, pixels.
    scores : torch.Tensor
        ``(object,)``, 0 to 1.
    labels : torch.Tensor
        ``(object,)`` int64, number of the class from 0.
    masks : torch.Tensor or None
        ``(object, y, x)`` bool; None of a network of boxes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None


class CrownDetector(nn.Module):
    """Mask R-CNN or Faster R-CNN for objects of one class or several, with random weights.

    Parameters
    ----------
    backbone : str
        A residual network of timm's.
    in_channels : int
    masks : bool
        Whether objects have outlines (Mask R-CNN) or boxes alone (Faster R-CNN).
    anchors : str
        Sides of the anchors in pixels, one for each of the five levels, as ``"8,16,32,64,128"``.
    channels : int
        Of the pyramid and the heads, a multiple of 8; 256 in the papers.
    most : int
        Objects of an image, at most.
    frozen_norm : bool
        Keep the encoder's batch normalisation as its weights were learned, for weights that were learned elsewhere;
        group normalisation in its place else, since batches of detectors are small.
    num_classes : int
        Classes of objects, the background not counted.
    boxes : int
        Boxes of an image that the heads learn from in a step, a fourth of them on objects at most; 512 in the papers,
        for images of a thousand pixels.

    Raises
    ------
    InputError
        If an argument is out of its range, or timm knows no such residual network.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        in_channels: int = 3,
        masks: bool = True,
        anchors: str = "8,16,32,64,128",
        channels: int = 256,
        most: int = 200,
        frozen_norm: bool = False,
        num_classes: int = 1,
        boxes: int = 512,
    ) -> None:
        super().__init__()
        sides = _sides(anchors)
        if in_channels < 1 or channels < _GROUPS or channels % _GROUPS or most < 1 or num_classes < 1 or boxes < 4:
            raise InputError(
                f"a detector of {channels} channels for {in_channels} bands, {most} objects of {num_classes} classes "
                f"and {boxes} boxes",
                what_to_do=f"give a multiple of {_GROUPS} channels, a band, an object, a class and four boxes at least",
            )
        if not backbone.startswith("resnet") or not timm.is_model(backbone):
            raise InputError(
                f"there is no residual network {backbone!r}", what_to_do="use one of timm's, as resnet18 or resnet50"
            )
        encoder = timm.create_model(
            backbone,
            pretrained=False,
            features_only=True,
            in_chans=in_channels,
            out_indices=(1, 2, 3, 4),
            norm_layer=_frozen_norm if frozen_norm else _group_norm,
        )
        pyramid = _Pyramid(encoder, channels)
        kind: Any = MaskRCNN if masks else FasterRCNN
        heads: dict[str, Any] = {}
        if masks:
            heads = {
                "mask_roi_pool": MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=14, sampling_ratio=2),
                "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
                "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
            }
        self.network: Any = kind(
            pyramid,
            rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in sides), ((0.5, 1.0, 2.0),) * len(sides)),
            box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(channels * 49, 4 * channels),
            box_predictor=FastRCNNPredictor(4 * channels, num_classes + 1),
            box_detections_per_img=most,
            box_batch_size_per_image=boxes,
            # what overlaps is judged on the map, where all tiles are
            box_nms_thresh=0.5,
            box_score_thresh=0.05,
            **heads,
        )
        self.network.transform = _AsGiven()
        self.masks = masks

    def losses(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Sum of the losses of all parts, in training.

        Parameters
        ----------
        images : torch.Tensor
            ``(N, band, y, x)``, normalised.
        targets : sequence of mapping
            One an image: ``boxes (object, 4)``, ``labels (object,)`` from 1 (0 is the background), and ``masks (object,
            y, x)`` uint8 where the network has them; no object at all is a lesson too.
        """
        parts: dict[str, Tensor] = self.network(list(images), [dict(target) for target in targets])
        return torch.stack(list(parts.values())).sum()

    @property
    def encoder(self) -> nn.Module:
        """The residual network."""
        encoder: nn.Module = self.network.backbone.body
        return encoder

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[FoundObjects]:
        """Find objects on normalised images ``(N, band, y, x)``, one by one, in evaluation mode."""
        found = []
        for image in images:
            (one,) = self.network([image])
            masks = (one["masks"][:, 0] > 0.5) if self.masks else None
            found.append(FoundObjects(one["boxes"], one["scores"], one["labels"] - 1, masks))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """What all parts say of a fixed lattice of boxes, as numbers that a bundle can be checked by.

        Which objects are found jumps where two scores are alike; these numbers do not.

        Parameters
        ----------
        images : torch.Tensor
            ``(N, band, y, x)``, normalised.

        Returns
        -------
        torch.Tensor
            ``(N, value)``: mean objectness of each level; of each box the logits and offsets, and the mean of its mask.
        """
        parts = self.network
        height, width = images.shape[-2:]
        batch, _ = parts.transform(list(images))
        levels = parts.backbone(batch.tensors)
        objectness, _ = parts.rpn.head(list(levels.values()))
        y, x = torch.meshgrid(torch.arange(2) / 2.0, torch.arange(2) / 2.0, indexing="ij")
        corner = torch.stack([x.flatten() * width, y.flatten() * height], dim=1)
        lattice = torch.cat([corner, corner + corner.new_tensor([width / 2, height / 2])], dim=1).to(images)
        boxes, shapes = [lattice] * len(images), batch.image_sizes
        roi = parts.roi_heads
        logits, offsets = roi.box_predictor(roi.box_head(roi.box_roi_pool(levels, boxes, shapes)))
        values = [torch.stack([level.mean(dim=(1, 2, 3)) for level in objectness], dim=1)]
        values += [part.reshape(len(images), -1) for part in (logits, offsets)]
        if self.masks:
            drawn = roi.mask_predictor(roi.mask_head(roi.mask_roi_pool(levels, boxes, shapes)))
            values.append(drawn.mean(dim=(2, 3)).reshape(len(images), -1))
        return torch.cat(values, dim=1)


class _Pyramid(nn.Module):
    """Features of an encoder as a pyramid of five levels, the last one a subsampling."""

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        info: Any = encoder.feature_info
        if tuple(info.reduction()) != _STRIDES:
            raise InputError(f"the levels of the encoder are {tuple(info.reduction())}", what_to_do="use a ResNet")
        self.body = encoder
        self.fpn = FeaturePyramidNetwork(info.channels(), channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels: dict[str, Tensor] = self.fpn({str(n): level for n, level in enumerate(self.body(images))})
        return levels


class _AsGiven(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Images as they are: normalised already, at the size of the ground."""

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[], image_std=[], size_divisible=_STRIDES[-1])

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def _group_norm(channels: int, **_: Any) -> nn.Module:
    return nn.GroupNorm(_GROUPS, channels)


def _frozen_norm(channels: int, **_: Any) -> nn.Module:
    norm: nn.Module = FrozenBatchNorm2d(channels)
    return norm


def _sides(anchors: str) -> tuple[int, ...]:
    try:
        sides = tuple(int(side) for side in anchors.split(","))
    except ValueError:
        sides = ()
    if len(sides) != len(_STRIDES) + 1 or min(sides) < 1:
        raise InputError(f"anchors are {anchors!r}", what_to_do="give five sides in pixels, as '8,16,32,64,128'")
    return sides
