"""Compiled kernels of the phenology room: smoothing and season search over tiles of pixels.

Series are ``(time, pixel)`` arrays; a tile of `TILE` pixels is worked on at a time with the pixel axis innermost, so
that the compiler turns every row operation into vector instructions. Pixels never exchange numbers: the result for a
pixel is the same whatever tile, chunk or thread it falls into. Everything inside is float64, without fast-math.

The curve is a piecewise-linear function on a regular grid of knots, with the penalty of Whittaker on its second
differences. An observation between two knots weighs on both of them, so that irregular dates need no binning and the
normal equations stay pentadiagonal. On dates that all fall on knots this is Whittaker's smoother exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

__all__ = ["TILE"]

TILE = 64

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def solve(y: Any, w: Any, knot: Any, frac: Any, lam: Any, z: Any, a0: Any, a1: Any, g: Any, c: Any, m: Any) -> None:
    """Penalised least squares of a tile: (A'WA + lam D'D) z = A'W y by an LDL' factorisation of bandwidth 2.

    Parameters
    ----------
    y, w : (time, TILE)
        Values (finite, also where the weight is 0) and weights.
    knot, frac : (time,)
        Left knot of each date (below the last knot) and the fraction of a step beyond it.
    lam : (TILE,)
        Penalty on the squared second differences of this grid.
    z : (knots, TILE)
        Receives the curve at the knots; at least 3 knots.
    a0, a1, g, c, m : (knots, TILE)
        Workspace.
    """
    # one short loop per row and statement: each writes one array, which is what the vectoriser can prove safe
    n = z.shape[0]
    width = lam.size
    for k in range(n):
        # diagonals of D'D for second differences: 1 5 6 .. 6 5 1 and -2 -4 .. -4 -2
        d0 = 6.0
        if k == 0 or k == n - 1:
            d0 = 1.0
        elif n == 3:
            d0 = 4.0
        elif k == 1 or k == n - 2:
            d0 = 5.0
        d1 = -2.0 if k == 0 or k == n - 2 else -4.0
        for j in range(width):
            a0[k, j] = d0 * lam[j]
        for j in range(width):
            a1[k, j] = d1 * lam[j]
        for j in range(width):
            z[k, j] = 0.0
    for t in range(y.shape[0]):
        k = knot[t]
        f = frac[t]
        e = 1.0 - f
        for j in range(width):
            a0[k, j] += e * e * w[t, j]
        for j in range(width):
            z[k, j] += e * w[t, j] * y[t, j]
        if f > 0.0:
            for j in range(width):
                a1[k, j] += e * f * w[t, j]
            for j in range(width):
                a0[k + 1, j] += f * f * w[t, j]
            for j in range(width):
                z[k + 1, j] += f * w[t, j] * y[t, j]
    for j in range(width):
        g[0, j] = 1.0 / a0[0, j]
    for j in range(width):
        m[0, j] = a1[0, j]
    for j in range(width):
        c[0, j] = m[0, j] * g[0, j]
    for j in range(width):
        g[1, j] = 1.0 / (a0[1, j] - c[0, j] * m[0, j])
    for j in range(width):
        m[1, j] = a1[1, j] - lam[j] * c[0, j]
    for j in range(width):
        c[1, j] = m[1, j] * g[1, j]
    for j in range(width):
        z[1, j] -= c[0, j] * z[0, j]
    for k in range(2, n):
        for j in range(width):
            g[k, j] = 1.0 / (a0[k, j] - c[k - 1, j] * m[k - 1, j] - lam[j] * lam[j] * g[k - 2, j])
        for j in range(width):
            m[k, j] = a1[k, j] - lam[j] * c[k - 1, j]
        for j in range(width):
            c[k, j] = m[k, j] * g[k, j]
        for j in range(width):
            z[k, j] -= c[k - 1, j] * z[k - 1, j] + lam[j] * g[k - 2, j] * z[k - 2, j]
    for j in range(width):
        z[n - 1, j] *= g[n - 1, j]
    for j in range(width):
        z[n - 2, j] = z[n - 2, j] * g[n - 2, j] - c[n - 2, j] * z[n - 1, j]
    for k in range(n - 3, -1, -1):
        for j in range(width):
            z[k, j] = g[k, j] * (z[k, j] - lam[j] * z[k + 2, j]) - c[k, j] * z[k + 1, j]


@_jit
def at_dates(z: Any, knot: Any, frac: Any, out: Any) -> None:
    """Curve at the dates, (time, TILE), from the curve at the knots."""
    for t in range(out.shape[0]):
        k = knot[t]
        f = frac[t]
        for j in range(out.shape[1]):
            out[t, j] = (1.0 - f) * z[k, j] + f * z[k + 1, j]


@_jit
def despike(y: Any, w: Any, day: Any, depth: float, span: float, rounds: int, work: Any) -> None:
    """Set the weight of dips to 0: clouds and shadows that the mask let through.

    A look is a dip if it lies more than `depth` below the chord between its neighbours, more than twice as deep as
    these differ from each other, and they are at most `span` days apart (the shadow rule of MSLSP). Repeated, because
    a dip may hide behind another.

    Parameters
    ----------
    y, w : (time, TILE)
    day : (time,)
    work : (4, time, TILE)
    """
    n = y.shape[0]
    width = y.shape[1]
    before_v = work[0]
    before_d = work[1]
    after_v = work[2]
    after_d = work[3]
    far = 1e9
    for _ in range(rounds):
        for j in range(width):
            before_d[0, j] = -far
        for j in range(width):
            before_v[0, j] = 0.0
        for j in range(width):
            after_d[n - 1, j] = far
        for j in range(width):
            after_v[n - 1, j] = 0.0
        for t in range(1, n):
            d = day[t - 1]
            for j in range(width):
                before_d[t, j] = d if w[t - 1, j] > 0.0 else before_d[t - 1, j]
            for j in range(width):
                before_v[t, j] = y[t - 1, j] if w[t - 1, j] > 0.0 else before_v[t - 1, j]
        for t in range(n - 2, -1, -1):
            d = day[t + 1]
            for j in range(width):
                after_d[t, j] = d if w[t + 1, j] > 0.0 else after_d[t + 1, j]
            for j in range(width):
                after_v[t, j] = y[t + 1, j] if w[t + 1, j] > 0.0 else after_v[t + 1, j]
        changed = 0
        for t in range(n):
            d = day[t]
            for j in range(width):
                length = after_d[t, j] - before_d[t, j]
                rise = after_v[t, j] - before_v[t, j]
                dip = before_v[t, j] + rise * ((d - before_d[t, j]) / length) - y[t, j]
                spike = (w[t, j] > 0.0) & (length <= span) & (dip > depth) & (dip > 2.0 * abs(rise))
                w[t, j] = 0.0 if spike else w[t, j]
                changed += 1 if spike else 0
        if changed == 0:
            break


@_jit
def _neighbours(y: Any, red: Any, nir: Any, w: Any, t: int, day: float, row: Any) -> None:
    """Move the pair of nearest looks on: index (0, 1), brightness (2, 3), day and red of the nearer one (4, 5)."""
    width = y.shape[1]
    for a, b in ((1, 0), (3, 2)):
        for j in range(width):
            # the first look stands for its pair until there is a second one
            older = row[b, j] if row[b, j] == row[b, j] else (y[t, j] if b == 0 else red[t, j] + nir[t, j])
            row[a, j] = older if w[t, j] > 0.0 else row[a, j]
    for j in range(width):
        row[0, j] = y[t, j] if w[t, j] > 0.0 else row[0, j]
    for j in range(width):
        row[2, j] = red[t, j] + nir[t, j] if w[t, j] > 0.0 else row[2, j]
    for j in range(width):
        row[4, j] = day if w[t, j] > 0.0 else row[4, j]
    for j in range(width):
        row[5, j] = red[t, j] if w[t, j] > 0.0 else row[5, j]


@_jit
def screen(y: Any, red: Any, nir: Any, w: Any, day: Any, dip: float, change: float, past: Any, row: Any) -> None:
    """Set the weight of looks to 0 that clouds or shadows changed although the mask let them through.

    A look is left out if its index dips below the better one of the two looks before and of the two after by more
    than `dip`, and its brightness (red + near infrared) says why: brighter than the darker one of both pairs (cloud),
    or darker than the brighter one of both pairs without more red (shadow), by more than ``change (1 + span / 45
    days)``. Soil that comes out under a canopy raises red but lowers near infrared, so a true trough stays.

    Parameters
    ----------
    y, red, nir, w : (time, TILE)
    day : (time,)
    past : (6, time, TILE)
    row : (7, TILE)
    """
    n = red.shape[0]
    width = red.shape[1]
    far = 1e6
    row[:4] = np.nan
    row[4] = -far
    row[5] = -far
    for t in range(n):
        for i in range(6):
            for j in range(width):
                past[i, t, j] = row[i, j]
        _neighbours(y, red, nir, w, t, day[t], row)
    row[:4] = np.nan
    row[4] = far
    row[5] = -far
    for t in range(n - 1, -1, -1):
        for j in range(width):
            limit = change * (1.0 + min((row[4, j] - past[4, t, j]) / 45.0, 4.0))
            # at the ends of the series one side has no looks: the other one decides
            before = max(past[0, t, j], past[1, t, j])
            after = max(row[0, j], row[1, j])
            before = before if before == before else after
            after = after if after == after else before
            share = (day[t] - past[4, t, j]) / (row[4, j] - past[4, t, j])
            below = before + share * (after - before) - y[t, j] > dip
            bright = red[t, j] + nir[t, j]
            before = min(past[2, t, j], past[3, t, j])
            after = min(row[2, j], row[3, j])
            before = before if before == before else after
            after = after if after == after else before
            cloud = bright - max(before, after) > limit
            before = max(past[2, t, j], past[3, t, j])
            after = max(row[2, j], row[3, j])
            before = before if before == before else after
            after = after if after == after else before
            shadow = (min(before, after) - bright > limit) & (red[t, j] < max(past[5, t, j], row[5, j]) + 0.03)
            row[6, j] = 0.0 if below & (cloud | shadow) else w[t, j]
        _neighbours(y, red, nir, w, t, day[t], row)
        for j in range(width):
            w[t, j] = row[6, j]


@_jit
def quantile(y: Any, w: Any, q: float, out: Any, low: Any, high: Any, need: Any) -> None:
    """Lower q-quantile of the looks with weight, to 1/4096 of their range, by bisection (no sort, vectorised)."""
    n = y.shape[0]
    width = y.shape[1]
    for j in range(width):
        low[j] = np.inf
        high[j] = -np.inf
        need[j] = 0.0
    for t in range(n):
        for j in range(width):
            low[j] = min(low[j], y[t, j] if w[t, j] > 0.0 else np.inf)
        for j in range(width):
            high[j] = max(high[j], y[t, j] if w[t, j] > 0.0 else -np.inf)
        for j in range(width):
            need[j] += 1.0 if w[t, j] > 0.0 else 0.0
    for j in range(width):
        need[j] = max(1.0, np.ceil(q * need[j]))
    for _ in range(12):
        for j in range(width):
            out[j] = 0.0
        for t in range(n):
            for j in range(width):
                out[j] += 1.0 if (w[t, j] > 0.0) & (y[t, j] <= 0.5 * (low[j] + high[j])) else 0.0
        for j in range(width):
            middle = 0.5 * (low[j] + high[j])
            enough = out[j] >= need[j]
            high[j] = middle if enough else high[j]
            low[j] = low[j] if enough else middle
    for j in range(width):
        out[j] = high[j]


@_jit
def dormant_level(
    z: Any, y: Any, w: Any, fit: Any, noise: float, out: Any, sigma: Any, low: Any, high: Any, need: Any
) -> None:
    """Dormant value of a tile: the mean of the curve where it cannot be told from its low end.

    The low end is the lower 5 % quantile of the curve at its knots; what lies less than `noise` standard deviations
    of the looks above it belongs to the same dormant state. Without noise this is the quantile itself.
    """
    n = z.shape[0]
    width = z.shape[1]
    lower_quantile(z, 0.05, out, low, high)
    for j in range(width):
        low[j] = 0.0
        need[j] = 0.0
    for t in range(y.shape[0]):
        for j in range(width):
            r = max(y[t, j] - fit[t, j], 0.0)
            low[j] += w[t, j] * r * r
        for j in range(width):
            need[j] += w[t, j] if y[t, j] > fit[t, j] else 0.0
    for j in range(width):
        # what smoothing alone leaves behind is not noise
        sigma[j] = max(np.sqrt(low[j] / max(need[j], 1e-9)) - 0.005, 0.0)
    for j in range(width):
        high[j] = out[j] + noise * sigma[j]
    for j in range(width):
        low[j] = 0.0
        need[j] = 0.0
    for k in range(n):
        for j in range(width):
            low[j] += z[k, j] if z[k, j] <= high[j] else 0.0
        for j in range(width):
            need[j] += 1.0 if z[k, j] <= high[j] else 0.0
    for j in range(width):
        out[j] = low[j] / max(need[j], 1.0)


@_jit
def lower_quantile(z: Any, q: float, out: Any, low: Any, high: Any) -> None:
    """Lower q-quantile over the rows, to 1/4096 of their range, by bisection."""
    n = z.shape[0]
    width = z.shape[1]
    need = max(1.0, np.ceil(q * n))
    for j in range(width):
        low[j] = np.inf
        high[j] = -np.inf
    for k in range(n):
        for j in range(width):
            low[j] = min(low[j], z[k, j])
        for j in range(width):
            high[j] = max(high[j], z[k, j])
    for _ in range(12):
        for j in range(width):
            out[j] = 0.0
        for k in range(n):
            for j in range(width):
                out[j] += 1.0 if z[k, j] <= 0.5 * (low[j] + high[j]) else 0.0
        for j in range(width):
            middle = 0.5 * (low[j] + high[j])
            enough = out[j] >= need
            high[j] = middle if enough else high[j]
            low[j] = low[j] if enough else middle
    for j in range(width):
        out[j] = high[j]


@_jit
def reweight(y: Any, w0: Any, fit: Any, w: Any, scale: Any, count: Any) -> None:
    """Upper-envelope weights: looks far below the curve lose weight by Tukey's bisquare, looks above keep theirs.

    Clouds and shadows only lower an index, so the residuals above the curve are free of them and measure the noise,
    of which 0.02 is the smallest believed (a curve smoother than its looks must not lose the foot of the season).
    All weight is lost at four standard deviations.
    """
    n = y.shape[0]
    width = y.shape[1]
    for j in range(width):
        scale[j] = 0.0
        count[j] = 0.0
    for t in range(n):
        for j in range(width):
            r = max(y[t, j] - fit[t, j], 0.0)
            scale[j] += w0[t, j] * r * r
        for j in range(width):
            count[j] += w0[t, j] if y[t, j] > fit[t, j] else 0.0
    for j in range(width):
        scale[j] = 1.0 / (4.0 * max(np.sqrt(scale[j] / max(count[j], 1e-9)), 0.02))
    for t in range(n):
        for j in range(width):
            r = min((y[t, j] - fit[t, j]) * scale[j], 0.0)
            v = max(1.0 - r * r, 0.0)
            w[t, j] = w0[t, j] * v * v


@_jit
def v_curve(
    y: Any,
    w: Any,
    knot: Any,
    frac: Any,
    grid: Any,
    lams: Any,
    z: Any,
    fit: Any,
    a0: Any,
    a1: Any,
    g: Any,
    c: Any,
    m: Any,
    row: Any,
) -> None:
    """Choose lambda pixel by pixel by the V-curve (Frasso & Eilers 2015) over the ascending `grid`, into `lams`.

    Between neighbouring lambdas the step of (log misfit, log roughness) is measured; lambda is the geometric middle
    of the pair with the shortest one.
    """
    n = y.shape[0]
    width = lams.size
    # rows: misfit and roughness (0, 1), their logarithms at the lambda before (2, 3), shortest step (4), choice (5)
    for j in range(width):
        row[4, j] = np.inf
        row[5, j] = grid[0]
    for i in range(grid.size):
        for j in range(width):
            lams[j] = grid[i]
        solve(y, w, knot, frac, lams, z, a0, a1, g, c, m)
        at_dates(z, knot, frac, fit)
        for j in range(width):
            row[0, j] = 1e-12
            row[1, j] = 1e-12
        for t in range(n):
            for j in range(width):
                row[0, j] += w[t, j] * (y[t, j] - fit[t, j]) * (y[t, j] - fit[t, j])
        for k in range(1, z.shape[0] - 1):
            for j in range(width):
                bend = z[k - 1, j] - 2.0 * z[k, j] + z[k + 1, j]
                row[1, j] += bend * bend
        for j in range(width):
            misfit = np.log(row[0, j])
            rough = np.log(row[1, j])
            if i > 0:
                step = (misfit - row[2, j]) ** 2 + (rough - row[3, j]) ** 2
                if step < row[4, j]:
                    row[4, j] = step
                    row[5, j] = np.sqrt(grid[i] * grid[i - 1])
            row[2, j] = misfit
            row[3, j] = rough
    for j in range(width):
        lams[j] = row[5, j]


# --- one curve ----------------------------------------------------------------------------------------------------


@_jit
def value(curve: Any, x: float) -> float:
    """Curve between its knots by local cubics (Catmull-Rom); `x` in steps from the first knot."""
    n = curve.size
    k = int(x)
    k = max(0, min(k, n - 2))
    u = x - k
    b = curve[k]
    c = curve[k + 1]
    a = curve[k - 1] if k > 0 else 2.0 * b - c
    d = curve[k + 2] if k < n - 2 else 2.0 * c - b
    v: float = b + 0.5 * u * (c - a + u * (2.0 * a - 5.0 * b + 4.0 * c - d + u * (3.0 * (b - c) + d - a)))
    return v


@_jit
def extreme(curve: Any, k: int, step: int, sign: float) -> tuple[float, float]:
    """Day and value of the extreme next to knot `k` on the daily curve (the first of equal ones)."""
    n = curve.size
    low = max(0, (k - 1) * step)
    high = min((n - 1) * step, (k + 1) * step)
    best = low
    most = sign * value(curve, low / step)
    for day in range(low + 1, high + 1):
        v = sign * value(curve, day / step)
        if v > most + 5e-7:
            most = v
            best = day
    x = float(best)
    if low < best < high:
        # the summit of the parabola through the day and its neighbours
        a = sign * value(curve, (best - 1) / step)
        c = sign * value(curve, (best + 1) / step)
        bend = a - 2.0 * most + c
        if bend < 0.0:
            x += 0.5 * (a - c) / bend
    return x, sign * most


@_jit
def summit(curve: Any, day: float, top: float, level: float, step: int) -> tuple[float, float]:
    """Day and value of a summit that noise leaves open down to `level`.

    All days around the highest one whose value lies above `level` could be the peak: their centroid (weight: the
    height above that level) and their mean value. Without noise these are the peak itself.
    """
    middle = round(day)
    weight = 0.0
    moment = 0.0
    total = 0.0
    count = 0.0
    last = (curve.size - 1) * step
    for way in (-1, 1):
        x = middle if way == 1 else middle - 1
        while 0 <= x <= last:
            v = value(curve, x / step)
            if v < level:
                break
            weight += v - level
            moment += (v - level) * (x - day)
            total += v
            count += 1.0
            x += way
    if count < 3.0 or weight <= 0.0:
        return day, top
    return day + moment / weight, total / count


@_jit
def rising(curve: Any, start: float, stop: float, level: float, step: int) -> float:
    """First day in [start, stop] at which the daily curve reaches `level`, interpolated within the day."""
    day = int(np.ceil(start))
    last = int(np.floor(stop))
    # whole steps first: the curve between knots below the level can be passed over
    k = day // step + 1
    while k * step < last and curve[k] < level and curve[min(k + 1, curve.size - 1)] < level:
        k += 1
    day = max(day, (k - 1) * step)
    v = value(curve, day / step)
    if v >= level:
        return float(day)
    while day < last:
        following = value(curve, (day + 1) / step)
        if following >= level:
            return day + (level - v) / (following - v)
        v = following
        day += 1
    return stop


@_jit
def falling(curve: Any, start: float, stop: float, level: float, step: int) -> float:
    """Last day in [start, stop] at which the daily curve is at or above `level`, interpolated within the day."""
    day = int(np.floor(stop))
    first = int(np.ceil(start))
    k = (day - 1) // step
    while k * step > first and curve[k] < level and curve[max(k - 1, 0)] < level:
        k -= 1
    day = min(day, (k + 1) * step)
    v = value(curve, day / step)
    if v >= level:
        return float(day)
    while day > first:
        before = value(curve, (day - 1) / step)
        if before >= level:
            return day - (level - v) / (before - v)
        v = before
        day -= 1
    return start


@_jit
def find_peaks(
    curve: Any, first: int, last: int, reach: int, least: float, share: float, peaks: Any, left: Any, right: Any
) -> int:
    """Peaks that rise enough on both sides; returns how many, with the knots of their minima.

    From the lowest to the highest: a peak whose rise from either minimum (at most `reach` knots away, not past the
    next peak) is below max(`least`, `share` of the range within reach) is deleted, and its neighbours see further.
    """
    n = 0
    for k in range(first + 1, last):
        if curve[k] > curve[k - 1] and curve[k] >= curve[k + 1]:
            peaks[n] = k
            n += 1
    tried = -np.inf
    tried_at = -1
    while True:
        # the lowest peak not yet looked at; equal heights in order of time
        chosen = -1
        for i in range(n):
            v = curve[peaks[i]]
            open_ = v > tried or (v == tried and peaks[i] > tried_at)
            if open_ and (chosen < 0 or v < curve[peaks[chosen]]):
                chosen = i
        if chosen < 0:
            break
        p = peaks[chosen]
        tried = curve[p]
        tried_at = p
        a = max(first, p - reach)
        b = min(last, p + reach)
        lowest = curve[p]
        highest = curve[p]
        for k in range(a, b + 1):
            lowest = min(lowest, curve[k])
            highest = max(highest, curve[k])
        if chosen > 0:
            a = max(a, peaks[chosen - 1])
        if chosen < n - 1:
            b = min(b, peaks[chosen + 1])
        v_left = curve[p]
        for k in range(a, p):
            v_left = min(v_left, curve[k])
        v_right = curve[p]
        for k in range(p + 1, b + 1):
            v_right = min(v_right, curve[k])
        rise = max(least, share * (highest - lowest))
        if curve[p] - v_left < rise or curve[p] - v_right < rise:
            for i in range(chosen, n - 1):
                peaks[i] = peaks[i + 1]
            n -= 1
    for i in range(n):
        p = peaks[i]
        a = max(first, p - reach)
        b = min(last, p + reach)
        if i > 0:
            a = max(a, peaks[i - 1])
        if i < n - 1:
            b = min(b, peaks[i + 1])
        # of equal minima the one nearest to the peak
        left[i] = p
        for k in range(p - 1, a - 1, -1):
            if curve[k] < curve[left[i]]:
                left[i] = k
        right[i] = p
        for k in range(p + 1, b + 1):
            if curve[k] < curve[right[i]]:
                right[i] = k
    return n


@_jit
def grade(day: Any, y: Any, w: Any, snow: Any, fit: Any, start: float, stop: float) -> float:
    """Quality class of one half of a cycle: 1 good, 2 fair, 3 good or fair if snow counts, 5 poor."""
    length = max(stop - start, 1.0)
    for with_snow in (False, True):
        previous = start
        gap = 0.0
        n = 0.0
        total = 0.0
        squares = 0.0
        residual = 0.0
        for t in range(day.size):
            if w[t] > 0.0 and start <= day[t] <= stop and (with_snow or snow[t] == 0):
                gap = max(gap, day[t] - previous)
                previous = day[t]
                n += 1.0
                total += y[t]
                squares += y[t] * y[t]
                residual += (y[t] - fit[t]) ** 2
        gap = max(gap, stop - previous) / length
        spread = squares - total * total / max(n, 1.0)
        if gap <= 0.3 and residual < 0.25 * spread:
            return 3.0 if with_snow else 1.0 if gap <= 0.2 else 2.0
    return 5.0


@_jit
def believed(day: Any, w: Any, step: int, n_knots: int) -> tuple[int, int]:
    """First and last knot between a pixel's own first and last look; (0, -1) without looks."""
    t_first = -1
    t_last = -1
    for t in range(day.size):
        if w[t] > 0.0:
            t_last = t
            if t_first < 0:
                t_first = t
    if t_first < 0:
        return 0, -1
    return int(np.ceil(day[t_first] / step)), min(int(np.floor(day[t_last] / step)), n_knots - 1)


@_jit
def area_under(curve: Any, start: float, stop: float, step: int) -> float:
    """Integral of the curve over the days from `start` to `stop`: whole steps exactly, ends by trapezoids."""
    first = int(np.ceil(start / step))
    last = int(np.floor(stop / step))
    if last < first:
        return 0.5 * (value(curve, start / step) + value(curve, stop / step)) * (stop - start)
    n = curve.size
    area: float = 0.5 * (value(curve, start / step) + curve[first]) * (first * step - start)
    area += 0.5 * (value(curve, stop / step) + curve[last]) * (stop - last * step)
    for k in range(first, last):
        b = curve[k]
        c = curve[k + 1]
        a = curve[k - 1] if k > 0 else 2.0 * b - c
        d = curve[k + 2] if k < n - 2 else 2.0 * c - b
        # the integral of the local cubic of `value` over its step
        area += step * (13.0 * (b + c) - a - d) / 24.0
    return area


# --- a double logistic for each cycle -----------------------------------------------------------------------------

#: Numbers of a fitted cycle: left base, top, right base, middle and log rate of the rise, the same of the fall.
N_SHAPE = 7
#: Prior of the log rates: smoothing makes the curve's own slower by about this, and this is how far they may stray.
#: Both were chosen on simulated series; a cycle with many looks is not held by them.
_RATE_SHIFT = 0.15
_RATE_SPREAD = 0.2


@_jit
def shape(p: Any, t: float) -> float:
    """Value of a cycle with two bases: a logistic rise from ``p[0]`` to ``p[1]`` and a fall from there to ``p[2]``."""
    rise = 1.0 / (1.0 + np.exp(min(max(-np.exp(p[4]) * (t - p[3]), -60.0), 60.0)))
    fall = 1.0 / (1.0 + np.exp(min(max(-np.exp(p[6]) * (t - p[5]), -60.0), 60.0)))
    v: float = p[0] + (p[1] - p[0]) * rise - (p[1] - p[2]) * fall
    return v


@_jit
def _normal_equations(
    p: Any, prior: Any, ridge: float, day: Any, y: Any, w: Any, t0: int, t1: int, A: Any, b: Any, row: Any
) -> float:
    """Fill ``A`` and ``b`` of a Gauss-Newton step; give the weighted sum of squares with the ridge on the rates."""
    A[:] = 0.0
    b[:] = 0.0
    total = 0.0
    r1, r2 = np.exp(p[4]), np.exp(p[6])
    for t in range(t0, t1):
        if w[t] <= 0.0:
            continue
        u1, u2 = day[t] - p[3], day[t] - p[5]
        rise = 1.0 / (1.0 + np.exp(min(max(-r1 * u1, -60.0), 60.0)))
        fall = 1.0 / (1.0 + np.exp(min(max(-r2 * u2, -60.0), 60.0)))
        d1, d2 = rise * (1.0 - rise), fall * (1.0 - fall)
        row[0] = 1.0 - rise
        row[1] = rise - fall
        row[2] = fall
        row[3] = -(p[1] - p[0]) * d1 * r1
        row[4] = (p[1] - p[0]) * d1 * u1 * r1
        row[5] = (p[1] - p[2]) * d2 * r2
        row[6] = -(p[1] - p[2]) * d2 * u2 * r2
        e = y[t] - (p[0] * (1.0 - rise) + p[1] * (rise - fall) + p[2] * fall)
        total += w[t] * e * e
        for i in range(N_SHAPE):
            b[i] += w[t] * row[i] * e
            for j in range(i + 1):
                A[i, j] += w[t] * row[i] * row[j]
    for i in (4, 6):
        A[i, i] += ridge
        b[i] += ridge * (prior[i] - p[i])
        total += ridge * (prior[i] - p[i]) ** 2
    return total


@_jit
def _cholesky_step(A: Any, b: Any, damping: float, L: Any, x: Any) -> bool:
    """Solve (A + damping diag A) x = b; False where that is not positive definite."""
    for i in range(N_SHAPE):
        for j in range(i + 1):
            v = A[i, j] if i != j else A[i, i] * (1.0 + damping) + 1e-12
            for k in range(j):
                v -= L[i, k] * L[j, k]
            if i == j:
                if v <= 0.0:
                    return False
                L[i, i] = np.sqrt(v)
            else:
                L[i, j] = v / L[j, j]
    for i in range(N_SHAPE):
        v = b[i]
        for k in range(i):
            v -= L[i, k] * x[k]
        x[i] = v / L[i, i]
    for i in range(N_SHAPE - 1, -1, -1):
        v = x[i]
        for k in range(i + 1, N_SHAPE):
            v -= L[k, i] * x[k]
        x[i] = v / L[i, i]
    return True


@_jit
def _shape_crossing(p: Any, level: float, inner: float, outer: float) -> float:
    """Day between the peak (`inner`, above the level) and a foot (`outer`) at which the shape crosses a level."""
    if shape(p, outer) >= level:
        return np.nan
    for _ in range(30):
        middle = 0.5 * (inner + outer)
        if shape(p, middle) >= level:
            inner = middle
        else:
            outer = middle
    return 0.5 * (inner + outer)


@_jit
def lowland(curve: Any, k: int, direction: int, level: float, step: int) -> float:
    """Day up to which the curve stays below a level on its way from a minimum outwards, at most 120 days."""
    far = k
    while (
        0 <= far + direction < curve.size and abs(far + direction - k) * step <= 120 and curve[far + direction] < level
    ):
        far += direction
    return float(far * step)


@_jit
def fit_shape(
    day: Any, y: Any, w: Any, left_day: float, right_day: float, found: Any, levels: Any, spread: float
) -> bool:
    """Replace dates, base and amplitude of a cycle by those of a double logistic fitted to its looks.

    Levenberg-Marquardt with bisquare weights (Beck et al. 2006, their double logistic with a base on either side).
    `found` holds seven dates, base and amplitude, on entry those of the smooth curve. False, and nothing changed,
    where the looks do not carry the fit or it contradicts the smooth curve.
    """
    t0, t1 = 0, day.size
    while t0 < t1 and day[t0] < left_day - 5.0:
        t0 += 1
    while t1 > t0 and day[t1 - 1] > right_day + 5.0:
        t1 -= 1
    looks = 0
    for t in range(t0, t1):
        looks += 1 if w[t] > 0.0 else 0
    for i in range(9):
        if not np.isfinite(found[i]):
            return False
    if looks < N_SHAPE + 1:
        return False
    p = np.empty(N_SHAPE)
    p[0], p[1], p[2] = found[7], found[7] + found[8], found[7]
    p[3], p[5] = found[1], found[5]
    p[4] = np.log(min(max(3.93 / max(found[2] - found[0], 1.0), 0.01), 0.6))
    p[6] = np.log(min(max(3.93 / max(found[6] - found[4], 1.0), 0.01), 0.6))
    p[4] += _RATE_SHIFT
    p[6] += _RATE_SHIFT
    prior = p.copy()
    robust = w.copy()
    A, L = np.zeros((N_SHAPE, N_SHAPE)), np.zeros((N_SHAPE, N_SHAPE))
    b, row, x, trial = np.zeros(N_SHAPE), np.zeros(N_SHAPE), np.zeros(N_SHAPE), np.zeros(N_SHAPE)
    rest = np.empty(looks)
    scale = max(spread, 0.005)
    for outer in range(4):
        ridge = (scale / _RATE_SPREAD) ** 2
        damping = 1e-2
        now = _normal_equations(p, prior, ridge, day, y, robust, t0, t1, A, b, row)
        for _ in range(12):
            if not _cholesky_step(A, b, damping, L, x):
                damping *= 10.0
                continue
            for i in range(N_SHAPE):
                trial[i] = p[i] + x[i]
            trial[4] = min(max(trial[4], -4.6), 0.0)
            trial[6] = min(max(trial[6], -4.6), 0.0)
            then = _normal_equations(trial, prior, ridge, day, y, robust, t0, t1, A, b, row)
            if then <= now:
                small = now - then <= 1e-6 * now
                p[:] = trial
                now = then
                damping = max(damping * 0.2, 1e-6)
                if small:
                    break
            else:
                damping *= 10.0
                now = _normal_equations(p, prior, ridge, day, y, robust, t0, t1, A, b, row)
                if damping > 1e6:
                    break
        n = 0
        for t in range(t0, t1):
            if w[t] > 0.0:
                rest[n] = abs(y[t] - shape(p, day[t]))
                n += 1
        scale = max(1.4826 * np.median(rest), 0.003)
        if outer < 3:
            for t in range(t0, t1):
                u = (y[t] - shape(p, day[t])) / (4.685 * scale)
                robust[t] = w[t] * (1.0 - u * u) ** 2 if abs(u) < 1.0 else 0.0
    if not (p[3] < p[5]) or not (left_day - 5.0 < p[3] and p[5] < right_day + 5.0):
        return False
    peak_day, peak = p[3], shape(p, p[3])
    steps = 200
    for i in range(1, steps + 1):
        t = p[3] + (p[5] - p[3]) * i / steps
        v = shape(p, t)
        if v > peak:
            peak_day, peak = t, v
    base = 0.5 * (p[0] + p[2])
    amplitude = peak - base
    if not (0.6 * found[8] <= amplitude <= 1.7 * found[8]) or min(peak - p[0], peak - p[2]) < 0.5 * amplitude:
        return False
    dates = np.empty(7)
    dates[3] = peak_day
    for i in range(3):
        dates[i] = _shape_crossing(p, p[0] + levels[i] * (peak - p[0]), peak_day, left_day - 30.0)
        dates[6 - i] = _shape_crossing(p, p[2] + levels[i] * (peak - p[2]), peak_day, right_day + 30.0)
    for i in range(7):
        if not np.isfinite(dates[i]) or (i > 0 and dates[i] < dates[i - 1]):
            return False
    found[:7] = dates
    found[7] = base
    found[8] = amplitude
    return True


@_jit
def seasons(
    curve: Any,
    day: Any,
    y: Any,
    w: Any,
    snow: Any,
    fit: Any,
    step: int,
    levels: Any,
    years: Any,
    floor: float,
    slack: float,
    rules: Any,
    peaks: Any,
    left: Any,
    right: Any,
    out: Any,
) -> None:
    """Season metrics of one curve into ``out (12, year, 2)``; the last row holds the number of cycles.

    `day` counts from the first knot, `years` holds the first day of each year and of the year after the last.
    """
    n_years = years.size - 1
    out[:10] = np.nan
    out[10] = 255.0
    out[11] = 0.0
    first, last = believed(day, w, step, curve.size)
    for k in range(curve.size):
        curve[k] = max(curve[k], floor)
    n = 0
    if last > first:
        reach = int(rules.reach_days // step)
        n = find_peaks(curve, first, last, reach, rules.min_amplitude, rules.min_range_share, peaks, left, right)
    for i in range(n):
        peak_day, peak = extreme(curve, peaks[i], step, 1.0)
        year = -1
        for candidate in range(n_years):
            if years[candidate] <= peak_day < years[candidate + 1]:
                year = candidate
        if year < 0:
            continue
        left_day, v_left = extreme(curve, left[i], step, -1.0)
        right_day, v_right = extreme(curve, right[i], step, -1.0)
        # no more slack than a fifth of the cycle, or small cycles would lose their shape
        lower = peak - min(slack, 0.2 * (peak - max(v_left, v_right)))
        peak_day, peak = summit(curve, peak_day, peak, lower, step)
        base = 0.5 * (v_left + v_right)
        amplitude = peak - base
        out[11, year, 0] += 1.0
        cycle = 0
        if not np.isnan(out[8, year, 0]):
            if amplitude > out[8, year, 0]:
                for row in range(11):
                    out[row, year, 1] = out[row, year, 0]
            elif np.isnan(out[8, year, 1]) or amplitude > out[8, year, 1]:
                cycle = 1
            else:
                continue
        for p in range(3):
            out[p, year, cycle] = rising(curve, left_day, peak_day, v_left + levels[p] * (peak - v_left), step)
            out[6 - p, year, cycle] = falling(curve, peak_day, right_day, v_right + levels[p] * (peak - v_right), step)
        out[3, year, cycle] = peak_day
        out[7, year, cycle] = base
        out[8, year, cycle] = amplitude
        if rules.refine:
            found = out[:9, year, cycle].copy()
            foot = min(left_day, lowland(curve, left[i], -1, v_left + 0.1 * (peak - v_left), step))
            toe = max(right_day, lowland(curve, right[i], 1, v_right + 0.1 * (peak - v_right), step))
            if fit_shape(day, y, w, foot, toe, found, levels, slack / max(rules.top_noise, 1e-6)):
                out[:9, year, cycle] = found
        start = out[0, year, cycle]
        stop = out[6, year, cycle]
        out[9, year, cycle] = area_under(curve, start, stop, step)
        quality = grade(day, y, w, snow, fit, left_day, peak_day)
        quality = max(quality, grade(day, y, w, snow, fit, peak_day, right_day))
        # a half that the edge of the looks cuts while the curve still moves: its baseline is not known
        if (left[i] == first and start - first * step < 20.0) or (right[i] == last and last * step - stop < 20.0):
            quality = 9.0
        out[10, year, cycle] = quality
    for year in range(n_years):
        if out[11, year, 0] > 0.0:
            continue
        looks = 0
        gap = 0.0
        previous = years[year]
        for t in range(day.size):
            if w[t] > 0.0 and years[year] <= day[t] < years[year + 1]:
                looks += 1
                gap = max(gap, day[t] - previous)
                previous = day[t]
        gap = max(gap, years[year + 1] - previous)
        if looks < rules.min_looks or gap > rules.max_gap:
            out[11, year, 0] = 255.0
        else:
            out[10, year, 0] = 6.0 if looks > 23 and gap <= 30.0 else 7.0


@_jit
def load_tile(series: Any, weights: Any, p0: int, width: int, y: Any, w: Any) -> None:
    """Looks of a tile as float64, with weight 0 where there is none."""
    for t in range(series.shape[0]):
        for j in range(width):
            v = series[t, p0 + j]
            good = np.isfinite(v)
            y[t, j] = v if good else 0.0
            w[t, j] = 1.0 if good else 0.0
    if weights.shape[1] > 0:
        for t in range(series.shape[0]):
            for j in range(width):
                w[t, j] *= max(weights[t, p0 + j], 0.0)


@_jit
def set_snow(
    snow: Any, p0: int, width: int, y: Any, w: Any, snowy: Any, floor: Any, low: Any, high: Any, need: Any
) -> None:
    """Snow says that the ground is dormant, not how green it is: dormant value with half the weight (MSLSP)."""
    for t in range(y.shape[0]):
        for j in range(width):
            snowy[t, j] = snow[t, p0 + j]
            w[t, j] = 0.0 if snowy[t, j] > 0 else w[t, j]
    quantile(y, w, 0.05, floor, low, high, need)
    for t in range(y.shape[0]):
        for j in range(width):
            if snowy[t, j] > 0 and np.isfinite(floor[j]):
                y[t, j] = floor[j]
                w[t, j] = 0.5


class Rules(NamedTuple):
    """Numbers that the season search goes by; see `geoeco.phenology.metrics`."""

    envelope: int
    dip_depth: float
    dip_span: float
    screen_dip: float
    screen_change: float
    reach_days: float
    min_amplitude: float
    min_range_share: float
    min_looks: int
    max_gap: float
    dormant_noise: float
    top_noise: float
    refine: bool


@_jit
def metrics_range(
    series: Any,
    weights: Any,
    snow: Any,
    red: Any,
    nir: Any,
    start: int,
    stop: int,
    day: Any,
    knot: Any,
    frac: Any,
    grid: Any,
    n_knots: int,
    step: int,
    levels: Any,
    years: Any,
    rules: Any,
    out: Any,
) -> None:
    """Season metrics of the pixels [start, stop) of ``series (time, pixel)`` into ``out (12, year, 2, pixel)``.

    `weights`, `snow`, `red` and `nir` are (time, pixel), or have no pixels where there are none. `grid` holds one
    lambda for all pixels, or several from which the V-curve chooses.
    """
    n_times = series.shape[0]
    n_years = years.size - 1
    y = np.zeros((n_times, TILE))
    w0 = np.zeros((n_times, TILE))
    w = np.zeros((n_times, TILE))
    fit = np.zeros((n_times, TILE))
    reds = np.zeros((n_times, TILE))
    nirs = np.zeros((n_times, TILE))
    snowy = np.zeros((n_times, TILE), np.uint8)
    past = np.zeros((6, n_times, TILE))
    row = np.zeros((7, TILE))
    z = np.zeros((n_knots, TILE))
    a0 = np.zeros((n_knots, TILE))
    a1 = np.zeros((n_knots, TILE))
    g = np.zeros((n_knots, TILE))
    c = np.zeros((n_knots, TILE))
    m = np.zeros((n_knots, TILE))
    lams = np.full(TILE, grid[0])
    floor = np.zeros(TILE)
    sigma = np.zeros(TILE)
    low = np.zeros(TILE)
    high = np.zeros(TILE)
    need = np.zeros(TILE)
    curve = np.zeros(n_knots)
    one_y = np.zeros(n_times)
    one_w = np.zeros(n_times)
    one_fit = np.zeros(n_times)
    one_snow = np.zeros(n_times, np.uint8)
    peaks = np.zeros(n_knots, np.int64)
    left = np.zeros(n_knots, np.int64)
    right = np.zeros(n_knots, np.int64)
    one = np.zeros((12, n_years, 2))
    for p0 in range(start, stop, TILE):
        width = min(TILE, stop - p0)
        load_tile(series, weights, p0, width, y, w0)
        if red.shape[1] > 0:
            for t in range(n_times):
                for j in range(width):
                    reds[t, j] = red[t, p0 + j] if w0[t, j] > 0.0 else 0.0
                for j in range(width):
                    nirs[t, j] = nir[t, p0 + j] if w0[t, j] > 0.0 else 0.0
            if snow.shape[1] > 0:
                for t in range(n_times):
                    for j in range(width):
                        w0[t, j] = 0.0 if snow[t, p0 + j] > 0 else w0[t, j]
            for _ in range(2):
                screen(y, reds, nirs, w0, day, rules.screen_dip, rules.screen_change, past, row)
        if rules.dip_depth > 0.0:
            despike(y, w0, day, rules.dip_depth, rules.dip_span, 50, past)
        if snow.shape[1] > 0:
            set_snow(snow, p0, width, y, w0, snowy, floor, low, high, need)
        w[:] = w0
        if grid.size > 1:
            v_curve(y, w0, knot, frac, grid, lams, z, fit, a0, a1, g, c, m, row)
        solve(y, w, knot, frac, lams, z, a0, a1, g, c, m)
        at_dates(z, knot, frac, fit)
        for _ in range(rules.envelope):
            reweight(y, w0, fit, w, low, need)
            solve(y, w, knot, frac, lams, z, a0, a1, g, c, m)
            at_dates(z, knot, frac, fit)
        dormant_level(z, y, w0, fit, rules.dormant_noise, floor, sigma, low, high, need)
        for j in range(width):
            looks = 0
            for t in range(n_times):
                one_y[t] = y[t, j]
                one_w[t] = w0[t, j]
                one_fit[t] = fit[t, j]
                one_snow[t] = snowy[t, j]
                looks += 1 if w0[t, j] > 0.0 else 0
            for k in range(n_knots):
                curve[k] = z[k, j]
            if looks < rules.min_looks:
                one_w[:] = 0.0
            seasons(
                curve,
                day,
                one_y,
                one_w,
                one_snow,
                one_fit,
                step,
                levels,
                years,
                floor[j],
                rules.top_noise * sigma[j],
                rules,
                peaks,
                left,
                right,
                one,
            )
            for i in range(12):
                for year in range(n_years):
                    for cycle in range(2):
                        out[i, year, cycle, p0 + j] = one[i, year, cycle]


@_jit
def smooth_range(
    series: Any, weights: Any, start: int, stop: int, knot: Any, frac: Any, grid: Any, rounds: int, out: Any
) -> None:
    """Whittaker curves of the pixels [start, stop) at the knots, ``out (knot, pixel)``; `grid` as above."""
    n_times = series.shape[0]
    n_knots = out.shape[0]
    y = np.zeros((n_times, TILE))
    w0 = np.zeros((n_times, TILE))
    w = np.zeros((n_times, TILE))
    fit = np.zeros((n_times, TILE))
    row = np.zeros((7, TILE))
    z = np.zeros((n_knots, TILE))
    a0 = np.zeros((n_knots, TILE))
    a1 = np.zeros((n_knots, TILE))
    g = np.zeros((n_knots, TILE))
    c = np.zeros((n_knots, TILE))
    m = np.zeros((n_knots, TILE))
    lams = np.full(TILE, grid[0])
    for p0 in range(start, stop, TILE):
        width = min(TILE, stop - p0)
        load_tile(series, weights, p0, width, y, w0)
        if grid.size > 1:
            v_curve(y, w0, knot, frac, grid, lams, z, fit, a0, a1, g, c, m, row)
        w[:] = w0
        solve(y, w, knot, frac, lams, z, a0, a1, g, c, m)
        for _ in range(rounds):
            at_dates(z, knot, frac, fit)
            reweight(y, w0, fit, w, row[0], row[1])
            solve(y, w, knot, frac, lams, z, a0, a1, g, c, m)
        row[2] = 0.0
        for t in range(n_times):
            for j in range(width):
                row[2, j] += 1.0 if w0[t, j] > 0.0 else 0.0
        for k in range(n_knots):
            for j in range(width):
                out[k, p0 + j] = z[k, j] if row[2, j] >= 2.0 else np.nan


# --- other smoothers ----------------------------------------------------------------------------------------------


@_jit
def _next_look(series: Any, weights: Any, p: int, t: int) -> int:
    """Index of the first look of pixel `p` from date `t` on, or the number of dates."""
    while t < series.shape[0]:
        if np.isfinite(series[t, p]) and (weights.shape[1] == 0 or weights[t, p] > 0.0):
            return t
        t += 1
    return t


@_jit
def fill_range(series: Any, weights: Any, start: int, stop: int, day: Any, step: int, out: Any) -> None:
    """Straight lines between the looks of each pixel, at the knots; beyond them the first and the last look."""
    n = day.size
    for p in range(start, stop):
        before = -1
        after = _next_look(series, weights, p, 0)
        for k in range(out.shape[0]):
            x = float(k * step)
            while after < n and day[after] <= x:
                before = after
                after = _next_look(series, weights, p, after + 1)
            if before < 0 and after >= n:
                out[k, p] = np.nan
            elif before < 0:
                out[k, p] = series[after, p]
            elif after >= n:
                out[k, p] = series[before, p]
            else:
                share = (x - day[before]) / (day[after] - day[before])
                out[k, p] = series[before, p] + share * (series[after, p] - series[before, p])


@_jit
def _solve_six(a: Any, b: Any) -> None:
    """Gaussian elimination with a symmetric positive definite 6 x 6 matrix, in place; the solution is in `b`."""
    n = b.size
    for i in range(n):
        for r in range(i + 1, n):
            f = a[r, i] / a[i, i]
            for q in range(i, n):
                a[r, q] -= f * a[i, q]
            b[r] -= f * b[i]
    for i in range(n - 1, -1, -1):
        for q in range(i + 1, n):
            b[i] -= a[i, q] * b[q]
        b[i] /= a[i, i]


@_jit
def double_logistic(p: Any, t: float) -> float:
    """Beck et al. (2006), equation 3; `p` is base, amplitude, start, log rise, end, log fall."""
    rise = 1.0 / (1.0 + np.exp(-np.exp(p[3]) * (t - p[2])))
    fall = 1.0 / (1.0 + np.exp(np.exp(p[5]) * (t - p[4])))
    v: float = p[0] + p[1] * (rise + fall - 1.0)
    return v


@_jit
def fit_double_logistic(day: Any, y: Any, w: Any, first: float, last: float, p: Any, rounds: int) -> None:
    """Levenberg-Marquardt on the looks of [first, last], from and into `p`; weights fall below the curve."""
    a = np.zeros((6, 6))
    b = np.zeros(6)
    slope = np.zeros(6)
    trial = np.zeros(6)
    damping = 1e-3
    noise = np.inf
    cost = np.inf
    for iteration in range(60):
        a[:] = 0.0
        b[:] = 0.0
        above = 0.0
        count = 0.0
        for t in range(day.size):
            if w[t] <= 0.0 or day[t] < first or day[t] > last:
                continue
            rise = 1.0 / (1.0 + np.exp(-np.exp(p[3]) * (day[t] - p[2])))
            fall = 1.0 / (1.0 + np.exp(np.exp(p[5]) * (day[t] - p[4])))
            r = y[t] - p[0] - p[1] * (rise + fall - 1.0)
            if r > 0.0:
                above += r * r
                count += 1.0
            u = r / (4.0 * noise) if rounds > 0 else 0.0
            robust = 1.0 if u >= 0.0 else max(1.0 - u * u, 0.0) ** 2
            slope[0] = 1.0
            slope[1] = rise + fall - 1.0
            slope[2] = -p[1] * rise * (1.0 - rise) * np.exp(p[3])
            slope[3] = p[1] * rise * (1.0 - rise) * np.exp(p[3]) * (day[t] - p[2])
            slope[4] = p[1] * fall * (1.0 - fall) * np.exp(p[5])
            slope[5] = -p[1] * fall * (1.0 - fall) * np.exp(p[5]) * (day[t] - p[4])
            for i in range(6):
                b[i] += w[t] * robust * slope[i] * r
                for q in range(6):
                    a[i, q] += w[t] * robust * slope[i] * slope[q]
        if rounds > 0 and iteration % 10 == 9 and iteration < 10 * rounds:
            noise = max(np.sqrt(above / max(count, 1.0)), 0.02)
            cost = np.inf
        for i in range(6):
            a[i, i] = a[i, i] * (1.0 + damping) + 1e-9
        _solve_six(a, b)
        for i in range(6):
            # dates and rates move by no more than 20 days and a factor of two at once
            limit = 20.0 if i == 2 or i == 4 else 0.7 if i == 3 or i == 5 else 1.0
            trial[i] = p[i] + max(-limit, min(limit, b[i]))
        for i in (3, 5):
            trial[i] = max(-4.6, min(0.7, trial[i]))
        new = 0.0
        for t in range(day.size):
            if w[t] > 0.0 and first <= day[t] <= last:
                r = y[t] - double_logistic(trial, day[t])
                u = r / (4.0 * noise)
                if rounds > 0 and u < 0.0:
                    # the cost that belongs to the bisquare weights
                    r2 = 16.0 * noise * noise * (1.0 - max(1.0 - u * u, 0.0) ** 3) / 3.0
                    new += w[t] * (r2 if noise < np.inf else r * r)
                else:
                    new += w[t] * r * r
        if new <= cost:
            settled = cost - new <= 1e-10 * new
            cost = new
            damping = max(damping / 5.0, 1e-9)
            for i in range(6):
                p[i] = trial[i]
            if settled and iteration >= 10 * rounds:
                return
        else:
            damping = min(damping * 5.0, 1e6)


@_jit
def logistic_range(
    series: Any, weights: Any, start: int, stop: int, day: Any, step: int, rounds: int, rules: Any, curves: Any
) -> None:
    """Replace each cycle of the Whittaker ``curves (knot, pixel)`` by the double logistic of its looks."""
    n_times = series.shape[0]
    n_knots = curves.shape[0]
    y = np.zeros(n_times)
    w = np.zeros(n_times)
    curve = np.zeros(n_knots)
    p = np.zeros(6)
    peaks = np.zeros(n_knots, np.int64)
    left = np.zeros(n_knots, np.int64)
    right = np.zeros(n_knots, np.int64)
    for pixel in range(start, stop):
        for t in range(n_times):
            good = np.isfinite(series[t, pixel])
            y[t] = series[t, pixel] if good else 0.0
            w[t] = 1.0 if good else 0.0
            if weights.shape[1] > 0:
                w[t] *= max(weights[t, pixel], 0.0)
        for k in range(n_knots):
            curve[k] = curves[k, pixel]
        first, last = believed(day, w, step, n_knots)
        if last <= first:
            continue
        reach = int(rules.reach_days // step)
        n = find_peaks(curve, first, last, reach, rules.min_amplitude, rules.min_range_share, peaks, left, right)
        for i in range(n):
            peak = curve[peaks[i]]
            low = 0.5 * (curve[left[i]] + curve[right[i]])
            a = float(left[i] * step)
            b = float(right[i] * step)
            middle = float(peaks[i] * step)
            p[0] = low
            p[1] = peak - low
            p[2] = rising(curve, a, middle, low + 0.5 * (peak - low), step)
            p[4] = falling(curve, middle, b, low + 0.5 * (peak - low), step)
            p[3] = np.log(3.0 / max(middle - p[2], 10.0))
            p[5] = np.log(3.0 / max(p[4] - middle, 10.0))
            # the dormant state on both sides belongs to the cycle as far as the next one allows
            from_day = a if i > 0 and left[i] == right[i - 1] else max(a - 60.0, 0.0)
            to_day = b if i < n - 1 and right[i] == left[i + 1] else b + 60.0
            fit_double_logistic(day, y, w, from_day, to_day, p, rounds)
            for k in range(left[i], right[i] + 1):
                curves[k, pixel] = double_logistic(p, float(k * step))
