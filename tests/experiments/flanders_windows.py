"""Windows of 16 pixels round the labelled fields of the Flanders patch, on four clear dates: an illustration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from scipy.ndimage import label
from torch.nn import functional

from geoeco.training import Fold, ModelBundle, knn_probe

#: Clear over the whole patch: spring, summer, autumn and winter of 2018.
DATES = ("2018-04-19", "2018-07-05", "2018-09-21", "2018-02-25")
CLASSES = {"maize": 1200, "grass": 9120}
WINDOW, STEP, LEAST_PIXELS, FOLDS = 16, 3, 20, 4


def reflectance(source: Path) -> np.ndarray:
    """``(date, band, y, x)``: eight bands at 10 m, those of 20 m repeated, and NDVI."""
    fine = xr.open_dataset(source / "S2_L2A_10m.nc", mask_and_scale=False)
    coarse = xr.open_dataset(source / "S2_L2A_20m.nc", mask_and_scale=False)
    rows = [int(np.argmin(np.abs(fine["timestamp"].values - np.datetime64(date)))) for date in DATES]
    bands = []
    for name in ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A"):
        data = fine if name in fine else coarse
        pixels = data[name].transpose("timestamp", "y", "x").values[rows].astype(np.float32) * 1e-4
        bands.append(pixels if name in fine else pixels.repeat(2, axis=1).repeat(2, axis=2))
    red, nir = bands[2], bands[6]
    return np.stack([*bands, (nir - red) / np.maximum(nir + red, 1e-6)], axis=1)


def windows_of_fields(source: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners ``(window, 2)``, class names and numbers of fields of windows centred on labelled pixels."""
    types = np.squeeze(xr.open_dataset(source / "OUTPUT_POLY-110_10m.nc", mask_and_scale=False)["CT"].values)
    corners, classes, fields, number = [], [], [], 0
    for name, code in CLASSES.items():
        parts, count = label(types == code)
        for part in range(1, count + 1):
            y, x = np.nonzero(parts == part)
            if len(y) < LEAST_PIXELS:
                continue
            inside = (np.stack([y, x]) >= WINDOW // 2).all(axis=0) & (np.stack([y, x]) <= 64 - WINDOW // 2).all(axis=0)
            chosen = np.flatnonzero(inside & (y % STEP == 0) & (x % STEP == 0))
            corners += [(y[i] - WINDOW // 2, x[i] - WINDOW // 2) for i in chosen]
            classes += [name] * len(chosen)
            fields += [number] * len(chosen)
            number += len(chosen) > 0
    return np.array(corners), np.array(classes), np.array(fields)


def folds_by_field(classes: np.ndarray, fields: np.ndarray) -> list[Fold]:
    """Whole fields are tested, of each class in turn; a fold without both classes in test is left out."""
    turn = np.empty(len(fields), np.int64)
    for name in CLASSES:
        for position, field in enumerate(np.unique(fields[classes == name])):
            turn[fields == field] = position % FOLDS
    folds = []
    for k in range(FOLDS):
        test, val = np.flatnonzero(turn == k), np.flatnonzero(turn == (k + 1) % FOLDS)
        train = np.flatnonzero((turn != k) & (turn != (k + 1) % FOLDS))
        if len(val) and all(set(classes[part]) == set(CLASSES) for part in (test, train)):
            folds.append(Fold(train, val, test))
    return folds


def macro_f1(bundle: ModelBundle, source: Path) -> tuple[float, float, int]:
    """Mean, spread and number of folds of the k-NN probe on the features of the four dates in a row."""
    pixels = reflectance(source)
    corners, classes, fields = windows_of_fields(source)
    images = np.stack([pixels[:, :, y : y + WINDOW, x : x + WINDOW] for y, x in corners])
    flat = torch.from_numpy(images.reshape(-1, *images.shape[2:]))
    features = bundle(functional.interpolate(flat, size=bundle.size, mode="bicubic")).reshape(len(images), -1)
    result = knn_probe(features, classes, task="single-label", folds=folds_by_field(classes, fields))
    return result.mean["macro_f1"] or 0.0, result.sd["macro_f1"] or 0.0, len(result.folds)
