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
# # Learn from the seasons: from chips to a map
#
# An encoder is trained on season chips without any label, by season contrast (SSL4Eco, Plekhanova et al. 2025). Then it
# turns a region into an embedding map, in which we look for places that are alike. Everything runs offline on a small
# simulated world, with a network and a training as small: what is shown is how it is done, not how good it can be.

# %%
import logging
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rasterio.warp
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score

import geoeco

logging.disable(logging.WARNING)
torch.set_num_threads(1)

# %% [markdown]
# ## A world, a cube, and chips of each season
#
# A recipe finds places on a grid, cuts a chip of each season at each place, and stacks the cube that we map later.

# %%
folder = Path(tempfile.mkdtemp())
geoeco.simulate.write_s2_world(folder / "world", seed=42, size=162, years=1, clouds=0.4, revisit_days=10)
recipe = geoeco.Recipe.parse(
    """
    geoeco: 1
    name: chips
    inputs:
      imagery: {catalog: world/catalog.json, period: [2021-01-01, 2021-12-31]}
    grid: {crs: EPSG:32631, block: 256}
    steps:
      - {verb: windows, spacing_m: 250, dates: calendar}
      - verb: chips
        bands: [B02, B03, B04, B08]
        size: 32
        min_clear: 0.6
        min_valid: 0.9
        min_sun_elevation: 10
      - {verb: cube, bands: [B02, B03, B04, B08]}
    """,
    folder=str(folder),
)
run = recipe.run(folder / "run", progress=False)
chips = run.open("chips")
print(f"{chips.sizes['sample']} places, {int((chips['reason'] == '').sum())} chips")

# %%
complete = chips.isel(sample=np.flatnonzero((chips["reason"] == "").all("season"))[:40:10])
figure, axes = plt.subplots(len(complete.sample), 4, figsize=(6, 1.5 * len(complete.sample)), layout="constrained")
for row, sample in zip(axes, complete.sample, strict=True):
    for axis, season in zip(row, complete.season, strict=True):
        chip = complete.sel(sample=sample, season=season)
        axis.imshow((chip["chips"].sel(band=["B04", "B03", "B02"]).transpose("y", "x", "band") / 0.2).clip(0, 1))
        axis.set_title(f"{season.item()}, {str(chip['date'].values)[:10]}", fontsize=7)
        axis.set_axis_off()

# %% [markdown]
# ## Pretrain
#
# Each step takes three dates of each place. One head learns to ignore season and augmentation, one to ignore the season
# alone, one the augmentation alone; see `geoeco.models.SeCo`. The paper trains a ResNet-50 on 254,403 places for 100
# epochs; this is a ResNet with ten layers, a few dozen places and seconds. The loss is low at first, while the queues
# hold random keys, which are easily told from real ones.

# %%
bundle = geoeco.training.pretrain(
    str(folder / "run" / "chips"),
    folder / "training",
    backbone="resnet10t",
    bands=("B02", "B03", "B04", "B08", "ndvi"),
    min_valid=0.9,
    size=32,
    epochs=15,
    batch=16,
    lr=0.3,
    device="cpu",
    name="demo",
)
curve = pd.read_csv(folder / "training" / "logs" / "metrics.csv")
curve.tail(3)

# %%
curve.plot(x="step", y="loss", figsize=(6, 2.5), grid=True, ylabel="sum of three losses")
plt.show()

# %% [markdown]
# ## What the encoder sees in the seasons
#
# Each chip is one point: its embedding, brought to two dimensions. Left the first two principal components, right
# t-SNE, which keeps neighbours together and whose distances mean nothing more.

# %%
embeddings = geoeco.training.embed_chips(bundle, str(folder / "run" / "chips"), folder / "embeddings").load()
points = embeddings.stack(chip=("sample", "season")).dropna("chip").transpose("chip", "feature")
components = geoeco.mapping.PrincipalComponents(2).fit(points.values)
pictures = {
    "principal components": components.transform(points.values),
    "t-SNE": TSNE(perplexity=15, init="pca", random_state=0).fit_transform(points.values),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axis, (title, place) in zip(axes, pictures.items(), strict=True):
    for season in embeddings["season"].values:
        here = points["season"].values == season
        axis.scatter(*place[here].T, s=10, label=season)
    axis.set(title=title, xticks=[], yticks=[])
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## The map
#
# `embed` makes a composite of each quarter of the year and shows the encoder the window around each cell. The features
# of the four quarters are averaged. The first three principal components make a picture. Places of one colour look
# alike to the encoder, through the year.

# %%
embedding = geoeco.mapping.embed(run.open("cube"), bundle, stride=8)
embedding

# %%
grid = embedding.odc.geobox
table = embedding.stack(cell=("y", "x")).transpose("cell", "feature").values
known = np.isfinite(table).all(axis=1)
scores = geoeco.mapping.PrincipalComponents(3).fit(table[known]).transform(table)
low, high = np.nanpercentile(scores, (2, 98), axis=0)
colours = np.nan_to_num(((scores - low) / (high - low)).clip(0, 1), nan=1.0).reshape(*grid.shape, 3)

summer = geoeco.mapping.season_composites(run.open("cube"), ["JJA"]).isel(period=0)
natural = (summer.sel(band=["B04", "B03", "B02"]).transpose("y", "x", "band") / 0.15).clip(0, 1)

clusters = geoeco.mapping.cluster(embedding, k=5)["cluster"]
left, bottom, right, top = embedding.rio.bounds()
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
natural.fillna(1).plot.imshow(rgb="band", ax=axes[0], add_labels=False)
axes[1].imshow(colours, extent=(left, right, bottom, top))
clusters.where(clusters != 65535).plot(ax=axes[2], cmap="tab10", vmin=0, vmax=9, add_labels=False, add_colorbar=False)
for axis, title in zip(axes, ("summer", "embedding, three components", "five clusters"), strict=True):
    axis.set(title=title, xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axis.set_axis_off()

# %% [markdown]
# ## Where looks like here?
#
# The cosine of the angle between the embedding of every cell and that of one place, marked by a cross: within a wood that
# loses its leaves. Beside it, where such woods really are; of the second tile the truth is not drawn.

# %%
truth = geoeco.simulate.read_truth(folder / "world", "31UGS", years=[2021])
codes = dict(zip(truth["cover"].attrs["flag_meanings"].split(), truth["cover"].attrs["flag_values"], strict=True))
wood = (truth["cover"] == codes["deciduous"]).astype(float)
around = wood.rolling(y=25, x=25, center=True).mean().fillna(0)
place = around.isel(around.argmax(("y", "x")))
x, y = float(place["x"]), float(place["y"])
lon, lat = rasterio.warp.transform(truth.rio.crs, "EPSG:4326", [x], [y])
likeness = geoeco.mapping.nearest(embedding, lon[0], lat[0])

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
likeness.plot(ax=axes[0], robust=True, cbar_kwargs={"label": "cosine similarity"})
wood.plot(ax=axes[1], cmap="Greens", add_colorbar=False)
for axis, title in zip(axes, ("looks like the cross", "deciduous wood, true"), strict=True):
    axis.plot(x, y, "r+", markersize=12, markeredgewidth=2)
    axis.set(title=title, xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axis.set_axis_off()

# %% [markdown]
# How good is the ranking? The chance that a cell with mostly such wood in its window is more alike than a cell with
# little of it (area under the ROC curve; 0.5 is blind).

# %%
shares = around.interp(y=embedding["y"], x=embedding["x"], method="nearest")
there = np.isfinite(likeness.values) & np.isfinite(shares.values) & ((shares.values > 0.6) | (shares.values < 0.2))
score = roc_auc_score(shares.values[there] > 0.6, likeness.values[there])
print(f"area under the curve {score:.2f}, {int((shares.values[there] > 0.6).sum())} of {there.sum()} cells are wood")

# %% [markdown]
# ## Out to a GIS
#
# As whole numbers of eight bits with one scale for all bands. The verb `embed` does all of this for regions larger than
# memory, and `cog` writes its layers; see the recipe `embedding_map`.

# %%
kept = geoeco.mapping.PrincipalComponents(16).fit(table[known]).transform(table)
scale = geoeco.mapping.Quantisation.of(kept[known])
held, clipped = scale.round(kept)
layer = embedding.isel(feature=slice(0, 16)).copy(data=held.T.reshape(16, *grid.shape))
record = layer.geoeco.to_cog(folder / "embedding.tif", dtype="int8", scale=scale.scale, offset=scale.offset)
print(f"{record.path.name}: {len(record.bands)} bands of {record.dtype}, {clipped[known].mean():.2%} of values clipped")
