# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A habitat map from a drone: from labels to polygons
#
# An orthomosaic with labels in some places becomes a map of habitats without seams, with its doubt beside it, and then
# polygons. Everything runs offline on a small simulated farmland, with networks as small and trained for seconds: what
# is shown is how it is done, not how good it can be.

# %%
import logging
import tempfile
from pathlib import Path

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rasterio
import rasterio.features
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap

import geoeco
import geoeco.mapping
import geoeco.outputs
import geoeco.sampling
import geoeco.training
from geoeco.sensors.orthomosaic import open_orthomosaic

logging.disable(logging.WARNING)
torch.set_num_threads(1)

# %% [markdown]
# ## A farmland with truth

# %%
folder = Path(tempfile.mkdtemp())
geoeco.simulate.write_uav_world(folder / "world", seed=42, size=400, gsd=0.4)
mosaic = open_orthomosaic(folder / "world" / "orthomosaic.tif").load()
with rasterio.open(folder / "world" / "labels.tif") as source:
    labels = source.read(1)
with rasterio.open(folder / "world" / "truth" / "habitat.tif") as source:
    truth = source.read(1)

names = {code: name for code, name, _ in geoeco.simulate.HABITATS}
palette = ListedColormap([colour for _, _, colour in geoeco.simulate.HABITATS])
left, bottom, right, top = mosaic.rio.bounds()
frame = {"extent": (left, right, bottom, top)}
classes = {**frame, "cmap": palette, "norm": BoundaryNorm(np.arange(17) - 0.5, 16), "interpolation": "nearest"}
picture = mosaic["image"].where(mosaic["valid"], 255).transpose("y", "x", "band")


def show(panels, key=None):
    """Draw panels side by side: title, picture, settings."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 4.6), layout="constrained", squeeze=False)
    for axis, (title, values, settings) in zip(axes[0], panels, strict=True):
        drawn = axis.imshow(values, **settings)
        axis.set(title=title, xticks=[], yticks=[])
        if "vmax" in settings:
            figure.colorbar(drawn, ax=axis, shrink=0.7)
    if key is not None:
        boxes = [plt.Rectangle((0, 0), 1, 1, color=palette(code)) for code in key]
        figure.legend(boxes, [names[code] for code in key], loc="outside lower center", ncols=5, fontsize=8)
    return axes[0]


def masked(codes):
    """Leave out what has no class."""
    return np.ma.masked_equal(codes, 255)


show([("orthomosaic", picture, frame), ("labels", masked(labels), classes)], key=range(1, 16))
plt.show()

# %% [markdown]
# Habitats share their colours: a ridge is a strip of grass and bare soil, a forest belt has the trees of the wood. What
# tells them apart is texture, and what lies round them.
#
# ## Chips
#
# Chips of 12.8 m, for training, validation and test by areas of ground that share no pixel. The white edge is not found
# by its colour, which the roofs have too: the file has a mask.

# %%
areas = gpd.read_file(folder / "world" / "areas.gpkg")
chips = geoeco.sampling.grid_chips(
    folder / "world" / "orthomosaic.tif",
    labels=folder / "world" / "labels.tif",
    chip_m=12.8,
    min_valid=0.4,
    split=geoeco.sampling.AreaSplit(areas),
)
geoeco.sampling.store_uav_chips(str(folder / "uav.zarr"), chips)
sets = np.array(chips.attrs["splits"])[chips["split"]]
print({name: int((sets == name).sum()) for name in ("train", "val", "test")})

# %% [markdown]
# ## Two networks
#
# **DWFF-Net** (arXiv 2511.11659) reads four levels of a frozen vision transformer and gives each level one weight for
# the whole image. Its authors take DINOv3 ViT-L. Here it is the smallest transformer of timm with random weights, which
# the bundle says in capitals. Beside it a **stack of convolutions**, which sees five pixels around and no further, and
# learns all that it knows.

# %%
settings = {"schedule": "constant", "device": "cpu"}
settings |= {
    "cross_entropy": 1.0,
    "dice": 0.0,
    "focal": 0.0,
    "boundary_tolerance_m": 0.5,
    "flips": False,
    "colour": 0.0,
}
store = str(folder / "uav.zarr")
dwff = {"network": "dwff", "arguments": {"backbone": "test_vit"}, "lr": 3e-4, "epochs": 16, "batch": 16, "at_once": 16}
stack = {"network": "conv_stack", "arguments": {"layers": 5, "width": 16}, "lr": 5e-3, "epochs": 16, "batch": 8}
bundles = {
    "DWFF-Net": geoeco.training.train_segmentation(store, folder / "dwff", **dwff, **settings),
    "convolutions": geoeco.training.train_segmentation(store, folder / "conv", **stack, at_once=8, **settings),
}
print(bundles["DWFF-Net"].description)

# %% [markdown]
# ## The map
#
# A mosaic is larger than what fits through a network, so it is mapped by windows. Of the convolutions it is known how
# far they see: windows overlap by that much, only their cores are kept, and the map is that of the whole image. DWFF-
# Net weighs its levels by window, and each pixel depends on all of its window: cores would show seams. Its
# probabilities are blended, with weights that fall off towards the edge of a window and sum to one everywhere; only
# then the class is chosen.

# %%
ortho = folder / "world" / "orthomosaic.tif"
everything = ("class", "probability", "confidence", "entropy", "di", "aoa")
maps = {
    "convolutions": geoeco.mapping.predict(ortho, bundles["convolutions"], progress=False),
    "DWFF-Net": geoeco.mapping.predict(
        ortho, bundles["DWFF-Net"], window=64, overlap=32, blend="hann", outputs=everything, progress=False
    ),
}
show(
    [("truth", masked(np.where(mosaic["valid"], truth, 255)), classes)]
    + [(name, masked(found["class"]), classes) for name, found in maps.items()],
    key=range(1, 16),
)
plt.show()

# %%
inside = rasterio.features.geometry_mask(
    areas.geometry[areas["split"] == "test"], truth.shape, mosaic.rio.transform(), invert=True
)
scores = {}
for name, found in maps.items():
    told = found["class"].values[inside]
    matrix = geoeco.training.ConfusionMatrix.from_arrays(
        truth[inside][told != 255], told[told != 255], tuple(names.values())
    )
    scores[name] = pd.Series(matrix.iou, names.values()).where(matrix.support > 0)
    print(f"{name}: {matrix.accuracy:.0%} of the test ground is right, Matthews correlation {matrix.mcc:.2f}")
pd.DataFrame(scores).assign(pixels=matrix.support).dropna().round(2)

# %% [markdown]
# ### Seams
#
# The same network without overlap, and blended. Of neighbouring pixels, how many have another class? Where windows meet
# as often as elsewhere, if there is no seam.

# %%
side_by_side = geoeco.mapping.predict(
    ortho, bundles["DWFF-Net"], window=64, overlap=0, blend="hann", outputs=("class",), progress=False
)
zoom = (slice(90, 250), slice(90, 250))
plain = {"cmap": palette, "norm": classes["norm"], "interpolation": "nearest"}
show(
    [
        ("orthomosaic", picture.values[zoom], {}),
        ("windows side by side", masked(side_by_side["class"].values[zoom]), plain),
        ("blended", masked(maps["DWFF-Net"]["class"].values[zoom]), plain),
    ]
)
plt.show()


def changes(found, at):
    """Share of pixels with another class than their left neighbour, in some columns."""
    left_one, right_one = found[:, at - 1], found[:, at]
    return (left_one != right_one)[(left_one != 255) & (right_one != 255)].mean()


seams = np.arange(64, 400, 64)
others = np.setdiff1d(np.arange(1, 400), seams)
for name, found in (("side by side", side_by_side), ("blended", maps["DWFF-Net"])):
    values = found["class"].values
    print(f"{name:13} at the seams {changes(values, seams):.1%}, elsewhere {changes(values, others):.1%}")

# %% [markdown]
# ## How far to trust it
#
# **Entropy** is how much the network hesitates between classes. The **dissimilarity index** (Meyer & Pebesma 2021) is
# how far the features of a place are from those of the training chips. Where it is larger than between training chips
# of different blocks of ground, the map says itself that it does not apply. The one is about classes that look alike,
# the other about places unlike any seen.

# %%
best = maps["DWFF-Net"]
right = (best["class"] == truth).where(best["class"] != 255)
show(
    [
        ("entropy", best["entropy"], {**frame, "cmap": "magma", "vmin": 0, "vmax": 1}),
        ("dissimilarity index", best["di"], {**frame, "cmap": "viridis", "vmin": 0, "vmax": float(best["di"].max())}),
        ("right (white) and wrong", right, {**frame, "cmap": "Reds_r"}),
    ]
)
plt.show()
print(f"{float((best['aoa'] == 1).sum() / (best['aoa'] != 255).sum()):.1%} lie in the area of applicability")
bins = pd.cut(best["confidence"].values[right.notnull()], np.arange(0, 1.01, 0.2))
print(pd.Series(right.values[right.notnull()], name="share that is right").groupby(bins, observed=True).mean().round(2))

# %% [markdown]
# ## Polygons
#
# Regions of a class as polygons along the edges of the pixels; what is smaller than 8 m² goes up in its neighbour. The
# verbs `uav_chips`, `train_segmentation`, `predict`, `polygons` and `cog` do all of this for mosaics larger than
# memory; see the recipe `habitat_dwff`.

# %%
polygons = geoeco.mapping.class_polygons(best["class"], best["confidence"], min_area_m2=8)
geoeco.outputs.write_gpkg(polygons, folder / "habitats.gpkg", layer="habitats")
record = best["class"].geoeco.to_cog(folder / "habitats.tif")
print(f"{len(polygons)} polygons; {record.path.name} with {len(record.classes)} names and colours")
polygons.drop(columns="geometry").nlargest(5, "area_m2").round(2)

# %%
(axis,) = show([("polygons over the orthomosaic", picture, frame)])
polygons.boundary.plot(ax=axis, color="white", linewidth=0.7)
plt.show()
