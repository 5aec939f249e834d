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
# # Species of crowns: learn from close-ups, map from above
#
# A drone maps a wood from above, and then goes down to photograph some of its crowns from near, where leaves can be
# seen. Close-ups tell species better, but the map needs the view from above. So the encoder of crowns from above
# learns from pairs with close-ups of the same crowns (an idea of Saha et al. 2026). Everything runs offline on a small
# simulated farmland, with networks as small and trained for seconds: what is shown is how it is done, not how good it
# can be.

# %%
import json
import logging
import tempfile
from pathlib import Path

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap

import geoeco
import geoeco.mapping
import geoeco.outputs
import geoeco.sampling
import geoeco.training
from geoeco.sensors.orthomosaic import open_orthomosaic
from geoeco.vectors import read_crowns

logging.disable(logging.WARNING)
torch.set_num_threads(1)

# %% [markdown]
# ## Crowns and photos
#
# Outlines come from a detector or from the field. Photos are points with an accuracy: each is given to the crown that
# it lies in, else to the nearest within twice its accuracy.

# %%
folder = Path(tempfile.mkdtemp())
geoeco.simulate.write_uav_world(folder / "world", seed=42, size=720, gsd=0.25)
mosaic = open_orthomosaic(folder / "world" / "orthomosaic.tif").load()
crowns = read_crowns(folder / "world" / "crowns.gpkg", mosaic.odc.geobox, class_column="species")
photos = gpd.read_file(folder / "world" / "closeups.gpkg").drop(columns="crown_id")
pairs = geoeco.sampling.pair_closeups(crowns, photos)
counts = crowns["class_name"].value_counts()
print(f"{len(photos)} photos: {pairs.attrs}")
counts.to_frame("crowns")

# %%
species = list(geoeco.simulate.SPECIES)
palette = ListedColormap(["#56b4e9", "#e69f00", "#f0e442", "#d55e00", "#ffffff", "#cc79a7"])
left, bottom, right, top = mosaic.rio.bounds()
picture = mosaic["image"].where(mosaic["valid"], 255).transpose("y", "x", "band")


def over_the_mosaic(axis, frame, column, title):
    """Draw outlines over the mosaic, coloured by species."""
    axis.imshow(picture, extent=(left, right, bottom, top))
    for name, group in frame.groupby(column):
        group.boundary.plot(ax=axis, color=palette(species.index(name)), linewidth=1.0)
    axis.set(title=title, xlim=(left, right), ylim=(bottom, top))


figure, axis = plt.subplots(figsize=(7, 7), layout="constrained")
over_the_mosaic(axis, crowns, "class_name", "crowns by species, photos in red")
photos.plot(ax=axis, color="red", markersize=4)
axis.set_axis_off()
lines = [plt.Line2D([], [], color=palette(k)) for k in range(len(species))]
figure.legend(lines, species, loc="outside lower center", ncols=6, fontsize=8, facecolor="0.6")
plt.show()

# %% [markdown]
# ## Chips round crowns
#
# One chip a crown, as large as the largest needs, with its surroundings. A crown, its chip and all its photos belong
# to one set.

# %%
areas = gpd.read_file(folder / "world" / "areas.gpkg")
chips = geoeco.sampling.crown_chips(
    folder / "world" / "orthomosaic.tif",
    crowns,
    crown_class="class_name",
    chm=folder / "world" / "chm.tif",
    context="zero",
    min_valid=0.3,
    split=geoeco.sampling.AreaSplit(areas),
)
store = str(folder / "uav.zarr")
geoeco.sampling.store_uav_chips(store, chips)
sets = np.array(chips.attrs["splits"])[chips["split"]]
print({name: int((sets == name).sum()) for name in ("train", "val", "test")}, dict(chips.sizes))

# %%
figure, axes = plt.subplots(2, len(species), figsize=(1.6 * len(species), 3.6), layout="constrained")
for column, name in enumerate(species):
    own = crowns.loc[(crowns["class_name"] == name) & crowns["crown_id"].isin(pairs["crown_id"]), "crown_id"]
    near = pairs.loc[pairs["crown_id"] == own.iloc[0], "photo"].iloc[0]
    above = chips["image"].values[chips["crown_id"].values == own.iloc[0]]
    for axis, image in zip(
        axes[:, column], (np.moveaxis(above[0], 0, -1), plt.imread(folder / "world" / near)), strict=True
    ):
        axis.imshow(image)
        axis.set_axis_off()
    axes[0, column].set_title(name, fontsize=9)
plt.show()

# %% [markdown]
# ## Align the two views
#
# Two encoders, one of chips and one of photos, learn which photo shows which crown. Species are not used. Of the two,
# the encoder of chips is kept. What it is worth is measured without training: the species of a test crown is that of
# its nearest neighbours among the training crowns. Pairs alone, without a single name of a species, bring them nearer
# to the truth than random weights do. Which photo shows which of the test crowns (`crown_retrieval`) the encoder
# hardly finds: many crowns of a species look the same, and the network and its hundred crowns are few.

# %%
encoder = geoeco.training.align_crowns(
    store, folder / "aligned", pairs, folder / "world",
    encoder="test_resnet", closeup_size=48, epochs=20, batch=32, lr=2e-3, temperature=0.1, device="cpu",
)  # fmt: skip
scores = pd.DataFrame(json.loads((folder / "aligned" / "evaluation.json").read_text()))
scores.pivot_table(index="encoder", columns="metric", values="mean", sort=False).round(2)

# %% [markdown]
# ## Train, and map
#
# A linear layer on the aligned encoder, and both tuned on the species of the training crowns. Rare species weigh more.

# %%
bundle = geoeco.training.train_crowns(
    store, folder / "species", encoder=encoder, epochs=12, batch=32, lr=2e-3, contrast=0.5, device="cpu"
)
scores = pd.DataFrame(json.loads((folder / "species" / "evaluation.json").read_text()))
scores.loc[scores["split"] == "test", ["metric", "mean"]].set_index("metric").T.round(2)

# %%
mapped = geoeco.mapping.classify_crowns(store, bundle, crowns, min_height_m=2)
geoeco.outputs.write_gpkg(mapped, folder / "crowns.gpkg", layer="crowns")
mapped.drop(columns=["geometry", "source", "date"]).head().round(2)

# %%
tested = mapped[(mapped["split"] == "test") & (mapped["labelled"] != "")]
figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained", width_ratios=(1.15, 1))
over_the_mosaic(axes[0], mapped, "class", "species as mapped; dashed: test crowns told wrong")
wrong = tested[tested["class"] != tested["labelled"]]
wrong.geometry.envelope.boundary.plot(ax=axes[0], color="red", linewidth=0.8, linestyle="--")
axes[0].set_axis_off()
table = pd.crosstab(tested["labelled"], tested["class"]).reindex(index=species, columns=species, fill_value=0)
axes[1].imshow(table, cmap="Blues")
for row, column in np.ndindex(*table.shape):
    axes[1].text(column, row, table.iloc[row, column], ha="center", va="center")
axes[1].set(title="test crowns", xlabel="mapped", ylabel="true", xticks=range(6), yticks=range(6), yticklabels=species)
axes[1].set_xticklabels(species, rotation=45, ha="right")
plt.show()

# %% [markdown]
# Where the map hesitates: crowns of high entropy are more often wrong.

# %%
ranked = tested.assign(right=tested["class"] == tested["labelled"]).sort_values("entropy")
for name, part in zip(("more", "less"), np.array_split(ranked["right"].to_numpy(), 2), strict=True):
    print(f"of the {name} sure half of the test crowns {part.mean():.0%} are right")
