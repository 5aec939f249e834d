"""Season metrics of 512 x 512 pixels x 70 irregular dates: geoeco beside a fused kernel and SciPy's double logistic.

The reference is written here by hand: one Whittaker solve on the same 5-day knots and the crossings of 15, 50 and
90 % on the straight lines between them, fused per pixel, in threads. It knows nothing of clouds, of several cycles,
of edges or of quality. geoeco runs as users call it ("defaults": a double logistic fitted to every cycle), with dates
read from the smooth curve ("whittaker"), and so with what the reference leaves out turned off as far as it can be
("whittaker, bare"). Errors are those of the dates of half the amplitude.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from harness import Contender, compare

SIZE, DATES, STEP, LAMBDA = 512, 70, 5, 1000.0
SAMPLE = 64


def truth(t, shift, s=120.0, r=0.1, e=270.0, f=0.08):
    t = t - shift
    return 0.1 + 0.5 * (1 / (1 + np.exp(-r * (t - s))) + 1 / (1 + np.exp(f * (t - e))) - 1)


def prepare(folder: Path) -> dict:
    rng = np.random.default_rng(0)
    day = np.sort(rng.choice(365, DATES, replace=False))
    day[0] = 0
    shift = rng.uniform(-15, 15, SIZE * SIZE).astype(np.float32)
    values = np.empty((DATES, SIZE * SIZE), np.float32)
    for i, d in enumerate(day):
        values[i] = truth(d, shift) + 0.02 * rng.standard_normal(SIZE * SIZE)
    values[rng.random(values.shape, dtype=np.float32) < 0.3] = np.nan
    np.savez(folder / "input.npz", values=values, day=day, shift=shift)
    return {"pixels": SIZE * SIZE, "dates": DATES, "clear": 0.7, "noise": 0.02}


def load(folder: Path):
    with np.load(folder / "input.npz") as stored:
        return stored["values"], stored["day"], stored["shift"]


def threads() -> int:
    return len(os.sched_getaffinity(0))


def make_reference():
    import numba

    @numba.njit(nogil=True, error_model="numpy")
    def run(values, knot, frac, lam, out, start, stop):
        count = out.shape[0]
        n = int(knot[-1]) + 2
        a0, a1, z, g, c = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
        shares = (0.15, 0.5, 0.9)
        for p in range(start, stop):
            for k in range(n):
                a0[k] = lam * (1.0 if k == 0 or k == n - 1 else 5.0 if k == 1 or k == n - 2 else 6.0)
                a1[k] = lam * (-2.0 if k == 0 or k == n - 2 else -4.0)
                z[k] = 0.0
            for t in range(values.shape[0]):
                v = values[t, p]
                if np.isfinite(v):
                    k, f = knot[t], frac[t]
                    a0[k] += (1 - f) * (1 - f)
                    a1[k] += f * (1 - f)
                    a0[k + 1] += f * f
                    z[k] += (1 - f) * v
                    z[k + 1] += f * v
            m1 = c1 = g1 = g2 = 0.0
            for k in range(n):
                gk = 1.0 / (a0[k] - c1 * m1 - lam * lam * g2)
                m = a1[k] - lam * c1
                if k > 0:
                    z[k] -= c1 * z[k - 1]
                if k > 1:
                    z[k] -= lam * g2 * z[k - 2]
                g[k], c[k] = gk, m * gk
                g2, g1, c1, m1 = g1, gk, c[k], m
            z[n - 1] *= g[n - 1]
            z[n - 2] = z[n - 2] * g[n - 2] - c[n - 2] * z[n - 1]
            for k in range(n - 3, -1, -1):
                z[k] = g[k] * (z[k] - lam * z[k + 2]) - c[k] * z[k + 1]
            top = 0
            for k in range(n):
                if z[k] > z[top]:
                    top = k
            low, high = z[0], z[n - 1]
            for k in range(top):
                low = min(low, z[k])
            for k in range(top, n):
                high = min(high, z[k])
            out[3, p] = top * 5.0
            for i in range(3):
                level = low + shares[i] * (z[top] - low)
                k = 0
                while z[k] < level:
                    k += 1
                out[i, p] = (k - 1 + (level - z[k - 1]) / (z[k] - z[k - 1])) * 5.0 if k > 0 else 0.0
                level = high + shares[i] * (z[top] - high)
                k = n - 1
                while z[k] < level:
                    k -= 1
                out[count - 1 - i, p] = (k + (z[k] - level) / (z[k] - z[k + 1])) * 5.0 if k < n - 1 else k * 5.0

    return run


def setup_reference(folder: Path):
    values, day, shift = load(folder)
    count = int(np.ceil(day[-1] / STEP)) + 1
    knot = np.minimum(day // STEP, count - 2)
    return make_reference(), values, knot, day / STEP - knot, shift


def reference(state) -> dict:
    run, values, knot, frac, shift = state
    out = np.empty((7, values.shape[1]), np.float32)
    edges = np.linspace(0, values.shape[1], 4 * threads() + 1).astype(int)
    with ThreadPoolExecutor(threads()) as pool:
        list(
            pool.map(
                lambda i: run(values, knot, frac, LAMBDA / STEP**3, out, edges[i], edges[i + 1]), range(len(edges) - 1)
            )
        )
    return errors(out[1], out[5], shift)


def errors(rise, fall, shift) -> dict:
    return {
        "rise_days": float(np.nanmedian(np.abs(rise - 120 - shift))),
        "fall_days": float(np.nanmedian(np.abs(fall - 270 - shift))),
    }


def setup_geoeco(folder: Path):
    import xarray as xr

    values, day, shift = load(folder)
    time = (np.datetime64("2021-01-01") + day).astype("datetime64[ns]")
    return xr.DataArray(values.reshape(DATES, SIZE, SIZE), dims=("time", "y", "x"), coords={"time": time}), shift


def geoeco(state, **settings) -> dict:
    from geoeco.phenology import metrics

    series, shift = state
    m = metrics(series, threads=threads(), **settings).isel(year=0, cycle=0)
    start = np.datetime64("2021-01-01").astype(int)
    return errors(m.midgreenup.values.ravel() - start, m.midgreendown.values.ravel() - start, shift)


def whittaker(state) -> dict:
    return geoeco(state, curve="whittaker")


def bare(state) -> dict:
    return geoeco(state, curve="whittaker", envelope=0, dip_depth=0.0)


def scipy_double_logistic(folder: Path) -> dict:
    from scipy.optimize import curve_fit

    values, day, shift = load(folder)

    def beck(t, base, amplitude, s, r, e, f):
        return base + amplitude * (1 / (1 + np.exp(-r * (t - s))) + 1 / (1 + np.exp(f * (t - e))) - 1)

    found = np.full((2, SAMPLE), np.nan)
    for p in range(SAMPLE):
        good = np.isfinite(values[:, p])
        try:
            fitted, _ = curve_fit(beck, day[good], values[good, p], p0=(0.1, 0.5, 110, 0.08, 260, 0.08), maxfev=5000)
        except RuntimeError:
            continue
        found[:, p] = fitted[2], fitted[4]
    return errors(found[0], found[1], shift[:SAMPLE])


if __name__ == "__main__":
    compare(
        "phenology",
        [
            Contender("fused kernel (reference)", reference, setup_reference),
            Contender("geoeco, whittaker, bare", bare, setup_geoeco),
            Contender("geoeco, whittaker", whittaker, setup_geoeco),
            Contender("geoeco, defaults", geoeco, setup_geoeco),
            Contender("scipy curve_fit", scipy_double_logistic, warmup=0, scale=SIZE * SIZE / SAMPLE),
        ],
        prepare=prepare,
        title=f"season metrics, {SIZE} x {SIZE} px x {DATES} irregular dates, {threads()} threads",
    )
