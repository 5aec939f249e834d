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
# # Seasons, pixel by pixel
#
# From a catalogue of Sentinel-2 scenes to the dates of the growing season of every pixel, and to image chips taken in
# each season. Everything here runs offline, on a small simulated world whose truth is known.

# %%
import json
import tempfile
from pathlib import Path

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np

import geoeco

# %% [markdown]
# ## A world with truth
#
# Two small tiles with fields, woods and water. Over a year and a half there is a scene every five days. Forty per cent
# of the ground is under cloud, and the cloud masks are as wrong as real ones.

# %%
world = Path(tempfile.mkdtemp()) / "world"
catalog = geoeco.simulate.write_s2_world(world, seed=42, size=96, years=1, clouds=0.4)
truth = geoeco.simulate.read_truth(world, "31UGS")
covers = {cover["code"]: cover["name"] for cover in json.loads((world / "truth" / "covers.json").read_text())}
covers

# %% [markdown]
# ## Find and stack
#
# A catalogue is searched; the items found become one masked cube on the grid we ask for. The second tile lies in another
# UTM zone. Where it overlaps, its pixels are warped to ours.

# %%
items = geoeco.open_catalog(catalog).search()
cube = geoeco.cubes.load(items, truth.odc.geobox, bands=("B02", "B03", "B04", "B08"))
cube

# %%
clear = cube["scl"].isin([4, 5, 6, 7]).mean(("y", "x"))
days = cube["time"].where(clear > 0.6, drop=True)[[1, 8, -8]]
picture = cube.geoeco.rgb(white=0.2).sel(time=days).plot.imshow(rgb="band", col="time", size=3)
for axis in picture.axs.flat:
    axis.set_aspect("equal")
    axis.set_axis_off()

# %% [markdown]
# Only part of each date is clear. This is how often each pixel was seen:

# %%
seen = cube.geoeco.valid_fraction()
print(f"a pixel is seen on {float(seen.mean()):.0%} of {cube.sizes['time']} dates")

# %% [markdown]
# ## Curves
#
# The index EVI2 of one pixel of each land cover: the looks, the smoothed curve, and the true dates of greenup and
# dormancy (dotted).

# %%
evi2 = cube.geoeco.index("evi2")
smooth = geoeco.phenology.smooth(evi2, envelope=2)
codes = [code for code in covers if (truth["cover"] == code).any()]
figure, axes = plt.subplots(len(codes), 1, figsize=(9, 1.6 * len(codes)), sharex=True, sharey=True, layout="constrained")
for axis, code in zip(axes, codes, strict=True):
    rows, cols = np.nonzero((truth["cover"] == code).values)
    pixel = dict(y=int(rows[len(rows) // 2]), x=int(cols[len(rows) // 2]))
    evi2.isel(pixel).plot(ax=axis, linestyle="", marker=".", color="0.5")
    smooth.isel(pixel).plot(ax=axis, color="tab:green")
    for name in ("greenup", "dormancy"):
        for day in truth[name].isel(pixel).values.ravel():
            if np.isfinite(day):
                axis.axvline(np.datetime64("1970-01-01") + np.timedelta64(int(day), "D"), color="k", linestyle=":")
    axis.set(title="", xlabel="", ylabel="", ylim=(-0.15, 0.9))
    axis.set_title(covers[code], loc="left", fontsize=9)

# %% [markdown]
# ## Dates of every pixel
#
# `metrics` finds up to two cycles a year: when the index first passes 15, 50 and 90 % of its rise, when it peaks, and when
# it last stands at 90, 50 and 15 % of its fall. No cycle is an answer, too: evergreen woods, bare soil and water have none.

# %%
seasons = cube.geoeco.season(years=[2021]).sel(year=2021)
true = truth.sel(year=2021)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
maps = {
    "greenup, day of year": (seasons["greenup_doy"].sel(cycle=1), {"vmin": 1, "vmax": 200}),
    "dormancy, day of year": (seasons["dormancy_doy"].sel(cycle=1), {"vmin": 165, "vmax": 365}),
    "cycles": (
        seasons["n_cycles"].where(seasons["n_cycles"] < 255),
        {"levels": [-0.5, 0.5, 1.5, 2.5], "cbar_kwargs": {"ticks": [0, 1, 2]}},
    ),
}
for axis, (title, (layer, style)) in zip(axes, maps.items(), strict=True):
    layer.plot(ax=axis, add_labels=False, cmap="viridis", **style)
    axis.set_title(title)
    axis.set_aspect("equal")
    axis.set_axis_off()

# %% [markdown]
# How far are they from the truth? Days, median over the pixels of each cover with one cycle.

# %%
dates = ["greenup", "midgreenup", "maturity", "peak", "senescence", "midgreendown", "dormancy"]
single = (true["n_cycles"] == 1) & (seasons["n_cycles"] == 1)
for code in codes:
    here = single & (true["cover"] == code)
    if int(here.sum()) > 50:
        error = {
            name: float(np.abs(seasons[name].sel(cycle=1) - true[name].sel(cycle=1)).where(here).median())
            for name in dates
        }
        print(f"{covers[code]:12}", "  ".join(f"{name} {days:4.1f}" for name, days in error.items()))

none = true["n_cycles"] == 0
print(f"no cycle found where there is none: {float((seasons['n_cycles'] == 0).where(none).mean()):.1%}")

# %% [markdown]
# ## Chips by season
#
# The dates say when spring, summer, autumn and winter are at a place. For each season the clearest image near the middle
# of its window is cut out.

# %%
left, bottom, right, top = truth.rio.bounds()
centre = ((left + right) / 2, (bottom + top) / 2)
points = gpd.points_from_xy([centre[0] - 200, centre[0] + 200], [centre[1], centre[1]], crs=truth.rio.crs)
places = geoeco.sampling.check_locations(gpd.GeoDataFrame({"name": ["west", "east"]}, geometry=points).to_crs(4326))
windows = geoeco.sampling.season_windows(cube.geoeco.season(years=[2021]), places, patch_m=480, worst_quality=5)
windows[["name", "season", "start", "end", "source"]]

# %%
chips = geoeco.sampling.season_chips(
    items, places, windows, size=48, bands=("B02", "B03", "B04"), min_clear=0.7, min_sun_elevation=10
)
figure, axes = plt.subplots(len(chips.sample), 4, figsize=(9, 2.5 * len(chips.sample)), layout="constrained", squeeze=False)
for row, sample in zip(axes, chips.sample, strict=True):
    for axis, season in zip(row, chips.season, strict=True):
        chip = chips.sel(sample=sample, season=season)
        axis.imshow((chip["chips"].sel(band=["B04", "B03", "B02"]).transpose("y", "x", "band") / 0.2).clip(0, 1))
        when = str(chip["date"].values)[:10] if chip["reason"] == "" else f"none: {chip['reason'].item()}"
        axis.set_title(f"{chip['name'].item()}, {season.item()}\n{when}", fontsize=9)
        axis.set_axis_off()

# %% [markdown]
# ## Out to a GIS
#
# A map becomes a cloud-optimised GeoTIFF with unit, nodata, statistics and a style.

# %%
record = seasons["greenup"].sel(cycle=1).geoeco.to_cog(world / "greenup_2021.tif")
sorted(path.name for path in world.glob("greenup_2021*"))
