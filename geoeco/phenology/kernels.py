"""Compiled kernels of the phenology room: smoothing, season search and the fit of cycles.

Series are ``(time, pixel)`` arrays; `LANES` pixels, or as many cycles, are worked on at a time. Pixels never exchange
numbers: the result for a pixel is the same whatever tile, chunk or thread it falls into. Everything inside is float64,
without fast-math.

The curve is a piecewise-linear function on a regular grid of knots, with the penalty of Whittaker on its second
differences. An observation between two knots weighs on both of them, so that irregular dates need no binning and the
normal equations stay pentadiagonal. On dates that all fall on knots this is Whittaker's smoother exactly.

One module, because Numba's cache of compiled code watches only the file in which a function stands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from geoeco.phenology.lanes import LANES, any_of, each, exp, lane, load, maximum, minimum, pixels, root, store, where

__all__ = ["METRICS", "PRIOR", "Rules", "fill_range", "metrics_range", "smooth_range"]

#: Rows of the metrics: 7 dates, base, amplitude, integral, quality, number of cycles, 7 days of the year.
METRICS = 19

#: Parameters of a fitted cycle: left base, top, right base, middle and log rate of the rise, the same of the fall.
SIZE = 7
#: Prior of a fitted cycle: usual log rates (1/day) of rise and fall, the standard deviation of log rates around the
#: middle between these and the smooth curve's; the standard deviations of the difference of the two bases (to which
#: half that of the smooth curve is added, in squares), and of each base around that of the smooth curve. The usual
#: rates are the medians of real series (docs/phenology.md).
PRIOR = np.array([np.log(0.11), np.log(0.09), 0.2, 0.02, 0.1])

_PAIRS = SIZE * (SIZE + 1) // 2
#: Rounds of bisquare weights of a fitted cycle, the least standard deviation of the looks that is believed, and the
#: fewest looks that carry the fit.
_ROUNDS = 2
_LEAST_NOISE = 0.003
_LEAST_LOOKS = 8
#: How far outside the years that are asked for the smooth curve may have a peak that the fit moves into them.
_NEAR_DAYS = 40.0
#: Pixels whose results are gathered before they are written.
_STRIP = 256
#: Beyond any day number.
_FAR = 1e9

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


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


# --- smoothing -------------------------------------------------------------------------------------------------------


@_jit
def load_looks(series: Any, weights: Any, first: int, width: int, y: Any, w: Any) -> None:
    """Looks of the pixels from `first` on as float64, with weight 0 where there is none and beyond `width`."""
    n = series.shape[0]
    if width == LANES:
        for t in range(n):
            v = pixels(series, t, first)
            good = v - v == 0.0
            store(y, t, where(good, v, 0.0))
            store(w, t, where(good, 1.0, 0.0))
        if weights.shape[1] > 0:
            for t in range(n):
                store(w, t, load(w, t) * maximum(pixels(weights, t, first), 0.0))
        return
    y[:] = 0.0
    w[:] = 0.0
    for t in range(n):
        for j in range(width):
            v = series[t, first + j]
            if np.isfinite(v):
                y[t, j] = v
                w[t, j] = 1.0 if weights.shape[1] == 0 else max(weights[t, first + j], 0.0)


@_jit
def solve(y: Any, w: Any, knot: Any, frac: Any, lam: Any, z: Any, g: Any, c: Any) -> None:
    """Penalised least squares: (A'WA + lam D'D) z = A'W y by an LDL' factorisation of bandwidth 2, in one sweep.

    Parameters
    ----------
    y, w : (time, LANES)
        Values (finite, also where the weight is 0) and weights.
    knot, frac : (time,)
        Left knot of each date (ascending, below the last knot) and the fraction of a step beyond it.
    lam : lanes
        Penalty on the squared second differences of this grid.
    z : (knots, LANES)
        Receives the curve at the knots; at least 4 knots.
    g, c : (knots, LANES)
        Workspace.
    """
    n = z.shape[0]
    lam2 = lam * lam
    zero = each(0.0)
    next_diagonal, next_right = zero, zero
    c1, m1, g1, g2, z1, z2 = zero, zero, zero, zero, zero, zero
    t = 0
    for k in range(n):
        # diagonals of D'D for second differences: 1 5 6 .. 6 5 1 and -2 -4 .. -4 -2
        d0 = 1.0 if k == 0 or k == n - 1 else 5.0 if k == 1 or k == n - 2 else 6.0
        d1 = -2.0 if k == 0 or k == n - 2 else -4.0
        diagonal = d0 * lam + next_diagonal
        beside = d1 * lam
        right = next_right
        next_diagonal, next_right = zero, zero
        while t < y.shape[0] and knot[t] == k:
            f = frac[t]
            e = 1.0 - f
            weight = load(w, t)
            value = weight * load(y, t)
            diagonal = diagonal + (e * e) * weight
            beside = beside + (e * f) * weight
            next_diagonal = next_diagonal + (f * f) * weight
            right = right + e * value
            next_right = next_right + f * value
            t += 1
        g0 = 1.0 / (diagonal - c1 * m1 - lam2 * g2)
        m1 = beside - lam * c1
        z0 = right - c1 * z1 - (lam * g2) * z2
        c1 = m1 * g0
        store(g, k, g0)
        store(c, k, c1)
        store(z, k, z0)
        g2, g1 = g1, g0
        z2, z1 = z1, z0
    z1, z2 = zero, zero
    for k in range(n - 1, -1, -1):
        far = lam * z2 if k < n - 2 else zero
        near = load(c, k) * z1 if k < n - 1 else zero
        z0 = load(g, k) * (load(z, k) - far) - near
        store(z, k, z0)
        z2, z1 = z1, z0


@_jit
def at_dates(z: Any, knot: Any, frac: Any, out: Any) -> None:
    """Curve at the dates, (time, LANES), from the curve at the knots."""
    for t in range(out.shape[0]):
        f = frac[t]
        store(out, t, (1.0 - f) * load(z, knot[t]) + f * load(z, knot[t] + 1))


@_jit
def noise_above(y: Any, w: Any, fit: Any) -> Any:
    """Root mean square of the looks above the curve, which clouds and shadows do not touch (they lower an index)."""
    total, count = each(0.0), each(0.0)
    for t in range(y.shape[0]):
        r = load(y, t) - load(fit, t)
        weight = where(r > 0.0, load(w, t), 0.0)
        total = total + weight * r * r
        count = count + weight
    return root(total / maximum(count, 1e-9))


@_jit
def reweight(y: Any, w0: Any, fit: Any, w: Any) -> None:
    """Upper-envelope weights: looks far below the curve lose weight by Tukey's bisquare, looks above keep theirs.

    Clouds and shadows only lower an index, so the residuals above the curve are free of them and measure the noise,
    of which 0.02 is the smallest believed (a curve smoother than its looks must not lose the foot of the season).
    All weight is lost at four standard deviations.
    """
    scale = 1.0 / (4.0 * maximum(noise_above(y, w0, fit), 0.02))
    for t in range(y.shape[0]):
        r = minimum((load(y, t) - load(fit, t)) * scale, 0.0)
        v = maximum(1.0 - r * r, 0.0)
        store(w, t, load(w0, t) * v * v)


@_jit
def low_end(z: Any, share: float, lowest: Any) -> Any:
    """Lower quantile (lanes) of the rows of `z`: the k-th lowest for k = ceil(share x rows).

    ``lowest (rows, LANES)`` is workspace: the k lowest so far, ascending.
    """
    n = z.shape[0]
    k = max(1, int(np.ceil(share * n)))
    for i in range(k):
        store(lowest, i, each(np.inf))
    for row in range(n):
        v = load(z, row)
        for i in range(k):
            held = load(lowest, i)
            store(lowest, i, minimum(held, v))
            v = maximum(held, v)
    return load(lowest, k - 1)


@_jit
def v_curve(y: Any, w: Any, knot: Any, frac: Any, grid: Any, z: Any, fit: Any, g: Any, c: Any) -> Any:
    """Choose lambda (lanes) by the V-curve (Frasso & Eilers 2015) over the ascending `grid`.

    Between neighbouring lambdas the step of (log misfit, log roughness) is measured; lambda is the geometric middle
    of the pair with the shortest one.
    """
    shortest = np.full(LANES, np.inf)
    chosen = np.full((1, LANES), grid[0])
    past = np.zeros((2, LANES))
    now = np.zeros((2, LANES))
    for i in range(grid.size):
        solve(y, w, knot, frac, each(grid[i]), z, g, c)
        at_dates(z, knot, frac, fit)
        misfit, rough = each(1e-12), each(1e-12)
        for t in range(y.shape[0]):
            r = load(y, t) - load(fit, t)
            misfit = misfit + load(w, t) * r * r
        for k in range(1, z.shape[0] - 1):
            bend = load(z, k - 1) - 2.0 * load(z, k) + load(z, k + 1)
            rough = rough + bend * bend
        store(now, 0, misfit)
        store(now, 1, rough)
        for j in range(LANES):
            now[0, j] = np.log(now[0, j])
            now[1, j] = np.log(now[1, j])
            if i > 0:
                step = (now[0, j] - past[0, j]) ** 2 + (now[1, j] - past[1, j]) ** 2
                if step < shortest[j]:
                    shortest[j] = step
                    chosen[0, j] = np.sqrt(grid[i] * grid[i - 1])
        past[:] = now
    return load(chosen, 0)


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


# --- looks that clouds, shadows or snow changed ----------------------------------------------------------------------


@_jit
def despike(y: Any, w: Any, day: Any, depth: float, span: float, rounds: int, work: Any) -> None:
    """Set the weight of dips to 0: clouds and shadows that the mask let through.

    A look is a dip if it lies more than `depth` below the chord between its neighbours, more than twice as deep as
    these differ from each other, and they are at most `span` days apart (the shadow rule of MSLSP). Repeated, because
    a dip may hide behind another.

    Parameters
    ----------
    y, w : (time, LANES)
    day : (time,)
    work : (at least 2 time, LANES)
    """
    n = y.shape[0]
    values = work[:n]
    days = work[n : 2 * n]
    for _ in range(rounds):
        value, when = each(0.0), each(-_FAR)
        for t in range(n):
            store(values, t, value)
            store(days, t, when)
            seen = load(w, t) > 0.0
            value = where(seen, load(y, t), value)
            when = where(seen, day[t], when)
        value, when = each(0.0), each(_FAR)
        changed = each(0.0)
        for t in range(n - 1, -1, -1):
            look, weight = load(y, t), load(w, t)
            seen = weight > 0.0
            length = when - load(days, t)
            rise = value - load(values, t)
            # the dip below the chord, times the length of the chord
            dip = (load(values, t) - look) * length + rise * (day[t] - load(days, t))
            spike = seen & (length <= span) & (dip > depth * length) & (dip > 2.0 * maximum(rise, 0.0 - rise) * length)
            store(w, t, where(spike, 0.0, weight))
            changed = where(spike, 1.0, changed)
            value = where(seen, look, value)
            when = where(seen, day[t], when)
        if not any_of(changed > 0.0):
            break


@_jit
def _or_else(a: Any, b: Any) -> Any:
    """`a`, or `b` where it is NaN."""
    return where(a == a, a, b)


@_jit
def screen(y: Any, red: Any, nir: Any, w: Any, day: Any, dip: float, change: float, past: Any) -> None:
    """Set the weight of looks to 0 that clouds or shadows changed although the mask let them through.

    A look is left out if its index dips below the better one of the two looks before and of the two after by more
    than `dip`, and its brightness (red + near infrared) says why: brighter than the darker one of both pairs (cloud),
    or darker than the brighter one of both pairs without more red (shadow), by more than ``change (1 + span / 45
    days)``. Soil that comes out under a canopy raises red but lowers near infrared, so a true trough stays.

    Parameters
    ----------
    y, red, nir, w : (time, LANES)
    day : (time,)
    past : (at least 6 time, LANES)
        Workspace: of the pair of looks before each date the better and the worse index, the lower and the higher
        brightness, and day and red of the nearer one.
    """
    n = red.shape[0]
    none = each(np.nan)
    # the first look of a side stands for its pair until there is a second one
    near, far, bright, brighter = none, none, none, none
    when, red_near = each(-1e6), each(-1e6)
    for t in range(n):
        store(past, 6 * t, maximum(near, far))
        store(past, 6 * t + 1, minimum(bright, brighter))
        store(past, 6 * t + 2, maximum(bright, brighter))
        store(past, 6 * t + 3, when)
        store(past, 6 * t + 4, red_near)
        seen = load(w, t) > 0.0
        look, glow = load(y, t), load(red, t) + load(nir, t)
        far = where(seen, _or_else(near, look), far)
        near = where(seen, look, near)
        brighter = where(seen, _or_else(bright, glow), brighter)
        bright = where(seen, glow, bright)
        when = where(seen, day[t], when)
        red_near = where(seen, load(red, t), red_near)
    near, far, bright, brighter = none, none, none, none
    when, red_near = each(1e6), each(-1e6)
    for t in range(n - 1, -1, -1):
        weight = load(w, t)
        seen = weight > 0.0
        look, glow, redness = load(y, t), load(red, t) + load(nir, t), load(red, t)
        since = load(past, 6 * t + 3)
        limit = change * (1.0 + minimum((when - since) / 45.0, 4.0))
        # at the ends of the series one side has no looks: the other one decides
        before, after = load(past, 6 * t), maximum(near, far)
        before, after = _or_else(before, after), _or_else(after, before)
        share = (day[t] - since) / (when - since)
        below = before + share * (after - before) - look > dip
        before, after = load(past, 6 * t + 1), minimum(bright, brighter)
        before, after = _or_else(before, after), _or_else(after, before)
        cloud = glow - maximum(before, after) > limit
        before, after = load(past, 6 * t + 2), maximum(bright, brighter)
        before, after = _or_else(before, after), _or_else(after, before)
        shadow = (minimum(before, after) - glow > limit) & (redness < maximum(load(past, 6 * t + 4), red_near) + 0.03)
        store(w, t, where(below & (cloud | shadow), 0.0, weight))
        far = where(seen, _or_else(near, look), far)
        near = where(seen, look, near)
        brighter = where(seen, _or_else(bright, glow), brighter)
        bright = where(seen, glow, bright)
        when = where(seen, day[t], when)
        red_near = where(seen, redness, red_near)


@_jit
def set_snow(snow: Any, first: int, width: int, y: Any, w: Any, snowy: Any) -> None:
    """Snow says that the ground is dormant, not how green it is: dormant value with half the weight (MSLSP).

    The dormant value is the lower 5 % quantile of the other looks of the pixel; without any the snow is left out.
    """
    n = y.shape[0]
    snowy[:] = 0
    for j in range(width):
        any_snow = False
        for t in range(n):
            if snow[t, first + j] > 0:
                snowy[t, j] = 1
                w[t, j] = 0.0
                any_snow = True
        if not any_snow:
            continue
        count = 0
        looks = np.empty(n)
        for t in range(n):
            if w[t, j] > 0.0:
                looks[count] = y[t, j]
                count += 1
        if count == 0:
            continue
        floor = np.sort(looks[:count])[int(np.ceil(0.05 * count)) - 1]
        for t in range(n):
            if snowy[t, j] > 0:
                y[t, j] = floor
                w[t, j] = 0.5


# --- a double logistic for each cycle --------------------------------------------------------------------------------


@_jit
def _sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), lane by lane."""
    return 1.0 / (1.0 + exp(maximum(minimum(0.0 - x, 60.0), -60.0)))


@_jit
def shape(p: Any, t: Any) -> Any:
    """Values (lanes) of the cycles with parameters ``p (SIZE, LANES)`` on the days `t` (lanes)."""
    rise = _sigmoid(exp(load(p, 4)) * (t - load(p, 3)))
    fall = _sigmoid(exp(load(p, 6)) * (t - load(p, 5)))
    left, top, right = load(p, 0), load(p, 1), load(p, 2)
    return left + (top - left) * rise - (top - right) * fall


@_jit
def _equations(
    p: Any, centre: Any, scale: Any, prior: Any, day: Any, y: Any, w: Any, rows: int, a: Any, b: Any, slope: Any
) -> Any:
    """Gauss-Newton's matrix ``a (28, LANES)`` and right side ``b (SIZE, LANES)``; gives the cost.

    The cost is the weighted sum of squares plus that of the priors in units of the noise.
    """
    zero = each(0.0)
    for i in range(_PAIRS):
        store(a, i, zero)
    for i in range(SIZE):
        store(b, i, zero)
    cost = zero
    left, top, right = load(p, 0), load(p, 1), load(p, 2)
    start, end = load(p, 3), load(p, 5)
    r1, r2 = exp(load(p, 4)), exp(load(p, 6))
    for t in range(rows):
        weight = load(w, t)
        u1, u2 = load(day, t) - start, load(day, t) - end
        rise, fall = _sigmoid(r1 * u1), _sigmoid(r2 * u2)
        d1 = (top - left) * (rise * (1.0 - rise)) * r1
        d2 = (top - right) * (fall * (1.0 - fall)) * r2
        store(slope, 0, 1.0 - rise)
        store(slope, 1, rise - fall)
        store(slope, 2, fall)
        store(slope, 3, 0.0 - d1)
        store(slope, 4, d1 * u1)
        store(slope, 5, d2)
        store(slope, 6, 0.0 - d2 * u2)
        rest = load(y, t) - (left * (1.0 - rise) + top * (rise - fall) + right * fall)
        cost = cost + weight * rest * rest
        n = 0
        for i in range(SIZE):
            s = weight * load(slope, i)
            store(b, i, load(b, i) + s * rest)
            for j in range(i + 1):
                store(a, n, load(a, n) + s * load(slope, j))
                n += 1
    variance = scale * scale
    ridge = variance / (prior[2] * prior[2])
    for i, n in ((4, 14), (6, 27)):
        off = load(centre, i) - load(p, i)
        store(a, n, load(a, n) + ridge)
        store(b, i, load(b, i) + ridge * off)
        cost = cost + ridge * off * off
    ridge = variance / (prior[4] * prior[4])
    for i, n in ((0, 0), (2, 5)):
        off = load(centre, i) - load(p, i)
        store(a, n, load(a, n) + ridge)
        store(b, i, load(b, i) + ridge * off)
        cost = cost + ridge * off * off
    # a cycle between two others, or beside one, stands on two levels: the smooth curve tells
    step = 0.5 * (load(centre, 2) - load(centre, 0))
    ridge = variance / (prior[3] * prior[3] + step * step)
    off = right - left
    store(a, 0, load(a, 0) + ridge)
    store(a, 5, load(a, 5) + ridge)
    store(a, 3, load(a, 3) - ridge)
    store(b, 0, load(b, 0) + ridge * off)
    store(b, 2, load(b, 2) - ridge * off)
    return cost + ridge * off * off


@_jit
def _step(a: Any, b: Any, damping: Any, factor: Any, x: Any) -> None:
    """Solve (a + damping diag a) x = b by Cholesky's factorisation, lane by lane."""
    for i in range(SIZE):
        row = i * (i + 1) // 2
        for j in range(i + 1):
            column = j * (j + 1) // 2
            v = load(a, row + j)
            if i == j:
                v = v * (1.0 + damping) + 1e-12
            for k in range(j):
                v = v - load(factor, row + k) * load(factor, column + k)
            if i == j:
                # the diagonal holds the reciprocals of the roots
                store(factor, row + j, 1.0 / root(maximum(v, 1e-14)))
            else:
                store(factor, row + j, v * load(factor, column + j))
    for i in range(SIZE):
        row = i * (i + 1) // 2
        v = load(b, i)
        for k in range(i):
            v = v - load(factor, row + k) * load(x, k)
        store(x, i, v * load(factor, row + i))
    for i in range(SIZE - 1, -1, -1):
        v = load(x, i)
        for k in range(i + 1, SIZE):
            v = v - load(factor, k * (k + 1) // 2 + i) * load(x, k)
        store(x, i, v * load(factor, i * (i + 1) // 2 + i))


@_jit
def _spread(p: Any, day: Any, y: Any, w: Any, rows: int, rest: Any) -> Any:
    """Robust standard deviation of the looks around the cycles: 1.4826 x median, with the freedom that the fit took.

    The residuals are left in ``rest (rows, LANES)``.
    """
    count = each(0.0)
    high = each(0.0)
    for t in range(rows):
        r = load(y, t) - shape(p, load(day, t))
        store(rest, t, r)
        seen = load(w, t) > 0.0
        high = maximum(where(seen, maximum(r, 0.0 - r), 0.0), high)
        count = count + where(seen, 1.0, 0.0)
    low = each(0.0)
    for _ in range(14):
        middle = 0.5 * (low + high)
        below = each(0.0)
        for t in range(rows):
            r = load(rest, t)
            below = below + where((load(w, t) > 0.0) & (maximum(r, 0.0 - r) <= middle), 1.0, 0.0)
        enough = below >= 0.5 * count
        high = where(enough, middle, high)
        low = where(enough, low, middle)
    return 1.4826 * high * root(count / maximum(count - 5.0, 2.0))


@_jit
def fit(
    day: Any, y: Any, w: Any, rows: int, p: Any, spread: Any, prior: Any, rounds: int, least: float, work: Any
) -> Any:
    """Fit LANES cycles from and into ``p (SIZE, LANES)``; gives the standard deviation of the looks (lanes).

    Parameters
    ----------
    day, y, w : (rows, LANES)
        Looks; of weight 0 where a cycle has fewer.
    p : (SIZE, LANES)
        On entry bases, top, middles and log rates of the smooth curve.
    spread : lanes
        First guess of the standard deviation of the looks.
    prior : (5,)
        See `PRIOR`.
    rounds : int
        How often bisquare weights are taken anew.
    least : float
        Smallest standard deviation believed.
    work : (rows + rows + 128, LANES)
    """
    robust = work[:rows]
    rest = work[rows : 2 * rows]
    a = work[2 * rows : 2 * rows + 28]
    a2 = work[2 * rows + 28 : 2 * rows + 56]
    factor = work[2 * rows + 56 : 2 * rows + 84]
    b = work[2 * rows + 84 : 2 * rows + 91]
    b2 = work[2 * rows + 91 : 2 * rows + 98]
    slope = work[2 * rows + 98 : 2 * rows + 105]
    x = work[2 * rows + 105 : 2 * rows + 112]
    trial = work[2 * rows + 112 : 2 * rows + 119]
    centre = work[2 * rows + 119 : 2 * rows + 126]
    for i in range(SIZE):
        store(centre, i, load(p, i))
    for i, usual in ((4, prior[0]), (6, prior[1])):
        store(centre, i, 0.5 * (load(p, i) + usual))
        store(p, i, load(centre, i))
    for t in range(rows):
        store(robust, t, load(w, t))
    scale = maximum(spread, least)
    for outer in range(rounds + 1):
        damping = each(1e-2)
        now = _equations(p, centre, scale, prior, day, y, robust, rows, a, b, slope)
        active = now >= 0.0
        # before the last round the weights change again: no need to settle
        for _ in range(3 if outer < rounds else 12):
            _step(a, b, damping, factor, x)
            for i in range(SIZE):
                # dates and rates move by no more than 20 days and a factor of two at once
                limit = 20.0 if i == 3 or i == 5 else 0.7 if i == 4 or i == 6 else 1.0
                store(trial, i, load(p, i) + maximum(minimum(load(x, i), limit), 0.0 - limit))
            for i in (4, 6):
                store(trial, i, maximum(minimum(load(trial, i), 0.0), -4.6))
            then = _equations(trial, centre, scale, prior, day, y, robust, rows, a2, b2, slope)
            better = active & (then <= now)
            for i in range(SIZE):
                store(p, i, where(better, load(trial, i), load(p, i)))
                store(b, i, where(better, load(b2, i), load(b, i)))
            for i in range(_PAIRS):
                store(a, i, where(better, load(a2, i), load(a, i)))
            settled = better & (now - then <= 1e-4 * now)
            now = where(better, then, now)
            damping = where(better, maximum(damping * 0.2, 1e-6), damping * 10.0)
            active = active & ~settled & (damping < 1e6)
            if not any_of(active):
                break
        scale = maximum(_spread(p, day, y, w, rows, rest), least)
        if outer < rounds:
            for t in range(rows):
                u = load(rest, t) / (4.685 * scale)
                v = maximum(1.0 - u * u, 0.0)
                store(robust, t, load(w, t) * v * v)
    return scale


@_jit
def _crossing(p: Any, level: Any, inner: Any, outer: Any) -> Any:
    """Days between the peak (`inner`) and a foot (`outer`) at which the cycles cross a level, by bisection."""
    for _ in range(20):
        middle = 0.5 * (inner + outer)
        above = shape(p, middle) >= level
        inner = where(above, middle, inner)
        outer = where(above, outer, middle)
    return 0.5 * (inner + outer)


@_jit
def crossings(p: Any, levels: Any, first: Any, last: Any, dates: Any) -> Any:
    """Seven dates of the cycles into ``dates (7, LANES)``; gives the value at the peak (lanes).

    The peak is where the slope changes its sign between the two middles; `first` and `last` (lanes) bound the search
    of the crossings. A date is NaN where the level is not crossed in between.
    """
    start, end = load(p, 3), load(p, 5)
    r1, r2 = exp(load(p, 4)), exp(load(p, 6))
    left, top, right = load(p, 0), load(p, 1), load(p, 2)
    low, high = start, end
    for _ in range(20):
        middle = 0.5 * (low + high)
        rise, fall = _sigmoid(r1 * (middle - start)), _sigmoid(r2 * (middle - end))
        rising = (top - left) * r1 * (rise * (1.0 - rise)) > (top - right) * r2 * (fall * (1.0 - fall))
        low = where(rising, middle, low)
        high = where(rising, high, middle)
    summit = 0.5 * (low + high)
    peak = shape(p, summit)
    store(dates, 3, summit)
    for i in range(3):
        level = left + levels[i] * (peak - left)
        found = _crossing(p, level, summit, first)
        store(dates, i, where(shape(p, first) < level, found, np.nan))
        level = right + levels[i] * (peak - right)
        found = _crossing(p, level, summit, last)
        store(dates, 6 - i, where(shape(p, last) < level, found, np.nan))
    return peak


@_jit
def _softplus(x: Any) -> Any:
    return max(x, 0.0) + np.log1p(np.exp(-abs(x)))


@_jit
def area(p: Any, j: int, start: float, stop: float) -> float:
    """Integral of the cycle in lane `j` over the days from `start` to `stop`."""
    r1, r2 = np.exp(p[4, j]), np.exp(p[6, j])
    rise = (_softplus(r1 * (stop - p[3, j])) - _softplus(r1 * (start - p[3, j]))) / r1
    fall = (_softplus(r2 * (stop - p[5, j])) - _softplus(r2 * (start - p[5, j]))) / r2
    total: float = p[0, j] * (stop - start) + (p[1, j] - p[0, j]) * rise - (p[1, j] - p[2, j]) * fall
    return total


# --- one curve -------------------------------------------------------------------------------------------------------


@_jit
def _cubic(curve: Any, k: int) -> tuple[float, float, float, float]:
    """Coefficients, from the constant on, of the local cubic (Catmull-Rom) between the knots `k` and ``k + 1``."""
    n = curve.size
    b = curve[k]
    c = curve[k + 1]
    a = curve[k - 1] if k > 0 else 2.0 * b - c
    d = curve[k + 2] if k < n - 2 else 2.0 * c - b
    return b, 0.5 * (c - a), 0.5 * (2.0 * a - 5.0 * b + 4.0 * c - d), 0.5 * (3.0 * (b - c) + d - a)


@_jit
def value(curve: Any, x: float) -> float:
    """Curve between its knots; `x` in steps from the first knot."""
    k = max(0, min(int(x), curve.size - 2))
    u = x - k
    c0, c1, c2, c3 = _cubic(curve, k)
    v: float = c0 + u * (c1 + u * (c2 + u * c3))
    return v


@_jit
def extreme(curve: Any, k: int, step: int, sign: float) -> tuple[float, float]:
    """Day and value of the highest (`sign` 1) or lowest (-1) point within a step of a knot; of equal ones the first."""
    best = k - 1.0 if k > 0 else 0.0
    most = sign * curve[int(best)]
    for i in range(max(k - 1, 0), min(k + 1, curve.size - 1)):
        c0, c1, c2, c3 = _cubic(curve, i)
        # where the slope c1 + 2 c2 u + 3 c3 u^2 vanishes
        root = c2 * c2 - 3.0 * c1 * c3
        if root >= 0.0:
            q = -(c2 + np.copysign(np.sqrt(root), c2))
            for u in (c1 / q if q != 0.0 else -1.0, q / (3.0 * c3) if c3 != 0.0 else -1.0):
                if 0.0 < u < 1.0:
                    v = sign * (c0 + u * (c1 + u * (c2 + u * c3)))
                    if v > most + 5e-7:
                        most = v
                        best = i + u
        if sign * curve[i + 1] > most + 5e-7:
            most = sign * curve[i + 1]
            best = i + 1.0
    return best * step, sign * most


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
    share = 1.0 / step
    for way in (-1, 1):
        x = middle if way == 1 else middle - 1
        k = min(max(x // step, 0), curve.size - 2)
        c0, c1, c2, c3 = _cubic(curve, k)
        while 0 <= x <= last:
            if x > (k + 1) * step or x < k * step:
                k += way
                c0, c1, c2, c3 = _cubic(curve, k)
            u = (x - k * step) * share
            v = c0 + u * (c1 + u * (c2 + u * c3))
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
    k = min(int(start) // step, curve.size - 2)
    # the curve between knots below the level can be passed over
    while (k + 1) * step < stop and curve[k + 1] < level:
        k += 1
    c0, c1, c2, c3 = _cubic(curve, k)
    day = max(start, float(k * step))
    last = min(stop, float((k + 1) * step))
    u = day / step - k
    before = c0 + u * (c1 + u * (c2 + u * c3))
    if before >= level:
        return day
    while day < last:
        following: float = min(np.floor(day) + 1.0, last)
        u = following / step - k
        v = c0 + u * (c1 + u * (c2 + u * c3))
        if v >= level:
            portion: float = (level - before) / (v - before)
            return day + (following - day) * portion
        before = v
        day = following
    return last


@_jit
def falling(curve: Any, start: float, stop: float, level: float, step: int) -> float:
    """Last day in [start, stop] at which the daily curve is at or above `level`, interpolated within the day."""
    k = min(max(int(np.ceil(stop / step)) - 1, 0), curve.size - 2)
    while k * step > start and curve[k] < level:
        k -= 1
    c0, c1, c2, c3 = _cubic(curve, k)
    day = min(stop, float((k + 1) * step))
    first = max(start, float(k * step))
    u = day / step - k
    after = c0 + u * (c1 + u * (c2 + u * c3))
    if after >= level:
        return day
    while day > first:
        earlier: float = max(np.ceil(day) - 1.0, first)
        u = earlier / step - k
        v = c0 + u * (c1 + u * (c2 + u * c3))
        if v >= level:
            portion: float = (level - after) / (v - after)
            return day - (day - earlier) * portion
        after = v
        day = earlier
    return first


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
        top = curve[p]
        tried = top
        tried_at = p
        a = max(first, p - reach)
        b = min(last, p + reach)
        near_a = max(a, peaks[chosen - 1]) if chosen > 0 else a
        near_b = min(b, peaks[chosen + 1]) if chosen < n - 1 else b
        v_left = top
        for k in range(near_a, p):
            v_left = min(v_left, curve[k])
        v_right = top
        for k in range(p + 1, near_b + 1):
            v_right = min(v_right, curve[k])
        rise = top - max(v_left, v_right)
        kept = rise >= least
        if kept:
            lowest = top
            highest = top
            for k in range(a, b + 1):
                lowest = min(lowest, curve[k])
                highest = max(highest, curve[k])
            kept = rise >= share * (highest - lowest)
        if not kept:
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
def grade(day: Any, from_day: Any, y: Any, w: Any, snow: Any, fit: Any, j: int, start: float, stop: float) -> float:
    """Quality class of one half of a cycle: 1 good, 2 fair, 3 good or fair if snow counts, 5 poor."""
    length = max(stop - start, 1.0)
    t0 = from_day[int(np.ceil(start))]
    t1 = from_day[int(np.floor(stop)) + 1]
    for with_snow in (False, True):
        previous = start
        gap = 0.0
        n = 0.0
        total = 0.0
        squares = 0.0
        residual = 0.0
        snows = 0
        # without branches: which looks are clouded is as good as random
        for t in range(t0, t1):
            seen = w[t, j] > 0.0
            snows += snow[t, j] if seen else 0
            counted = seen & (with_snow | (snow[t, j] == 0))
            gap = max(gap, day[t] - previous) if counted else gap
            previous = day[t] if counted else previous
            one = 1.0 if counted else 0.0
            look = y[t, j]
            rest = look - fit[t, j]
            n += one
            total += one * look
            squares += one * (look * look)
            residual += one * (rest * rest)
        gap = max(gap, stop - previous) / length
        spread = squares - total * total / max(n, 1.0)
        if gap <= 0.3 and residual < 0.25 * spread:
            return 3.0 if with_snow else 1.0 if gap <= 0.2 else 2.0
        if snows == 0:
            break
    return 5.0


@_jit
def believed(day: Any, w: Any, j: int, step: int, n_knots: int) -> tuple[int, int]:
    """First and last knot between a pixel's own first and last look; (0, -1) without looks."""
    first = 0
    while first < day.size and w[first, j] <= 0.0:
        first += 1
    if first == day.size:
        return 0, -1
    last = day.size - 1
    while w[last, j] <= 0.0:
        last -= 1
    return int(np.ceil(day[first] / step)), min(int(np.floor(day[last] / step)), n_knots - 1)


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
        # the integral of the local cubic over its step
        area += step * (13.0 * (b + c) - a - d) / 24.0
    return area


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
def coverage(day: Any, from_day: Any, w: Any, years: Any, last_day: float, looks: Any, gaps: Any) -> None:
    """Looks and longest gap in days of each year, ``(year, LANES)``; a last row of `looks` counts them all."""
    total = each(0.0)
    for t in range(day.size):
        total = total + where(load(w, t) > 0.0, 1.0, 0.0)
    store(looks, years.size - 1, total)
    for year in range(years.size - 1):
        count, gap, previous = each(0.0), each(0.0), each(years[year])
        t0 = from_day[int(min(max(years[year], 0.0), last_day))]
        t1 = from_day[int(min(max(years[year + 1], 0.0), last_day))]
        for t in range(t0, t1):
            seen = load(w, t) > 0.0
            count = count + where(seen, 1.0, 0.0)
            gap = where(seen, maximum(gap, day[t] - previous), gap)
            previous = where(seen, day[t], previous)
        store(looks, year, count)
        store(gaps, year, maximum(gap, years[year + 1] - previous))


@_jit
def set_none(looks: Any, gaps: Any, j: int, least: int, longest: float, pixel: int, out: Any) -> None:
    """Say for a pixel that no year has a cycle, or that there are not enough looks to tell; `out` is empty there."""
    for year in range(gaps.shape[0]):
        if looks[year, j] < least or gaps[year, j] > longest:
            out[11, year, 0, pixel] = 255.0
        else:
            out[10, year, 0, pixel] = 6.0 if looks[year, j] > 23 and gaps[year, j] <= 30.0 else 7.0


@_jit
def place(cycle: Any, slot: int, years: Any, pixel: int, out: Any) -> None:
    """Write column `slot` of ``cycle (11, LANES)`` to the year of its peak: the larger one first, no more than two."""
    year = -1
    for candidate in range(years.size - 1):
        if years[candidate] <= cycle[3, slot] < years[candidate + 1]:
            year = candidate
    if year < 0:
        return
    before = out[11, year, 0, pixel]
    out[11, year, 0, pixel] = 1.0 if before == 255.0 else before + 1.0
    amplitude = cycle[8, slot]
    rank = 0
    if not np.isnan(out[8, year, 0, pixel]):
        if amplitude > out[8, year, 0, pixel]:
            for i in range(11):
                out[i, year, 1, pixel] = out[i, year, 0, pixel]
        elif np.isnan(out[8, year, 1, pixel]) or amplitude > out[8, year, 1, pixel]:
            rank = 1
        else:
            return
    for i in range(11):
        out[i, year, rank, pixel] = cycle[i, slot]


@_jit
def describe(
    curve: Any,
    day: Any,
    from_day: Any,
    y: Any,
    w: Any,
    snow: Any,
    fit: Any,
    j: int,
    step: int,
    ends: Any,
    minima: Any,
    peak_day: float,
    peak: float,
    levels: Any,
    slack: float,
    slot: int,
    bounds: Any,
    cycle: Any,
) -> None:
    """Dates, base, amplitude, integral and quality of one cycle of a curve into column `slot` of ``cycle (11, LANES)``.

    Parameters
    ----------
    curve : (knots,)
    day : (time,)
        From the first knot.
    from_day : (days + 2,)
        Index of the first date on or after each day.
    y, w, snow, fit : (time, LANES)
        Looks, weights, snow flags and curve at the dates, of which `j` is the pixel's column.
    ends, minima : pairs of int
        First and last knot of the looks, and knots of the minima beside the peak.
    peak_day, peak : float
    slack : float
        How far below its highest point a summit reaches, for noise.
    bounds : (6, LANES)
        Receives the days of the minima, how far the lowland beside the cycle extends, and the values of the minima.
    """
    left_day, v_left = extreme(curve, minima[0], step, -1.0)
    right_day, v_right = extreme(curve, minima[1], step, -1.0)
    # no more slack than a fifth of the cycle, or small cycles would lose their shape
    lower = peak - min(slack, 0.2 * (peak - max(v_left, v_right)))
    peak_day, peak = summit(curve, peak_day, peak, lower, step)
    for i in range(3):
        cycle[i, slot] = rising(curve, left_day, peak_day, v_left + levels[i] * (peak - v_left), step)
        cycle[6 - i, slot] = falling(curve, peak_day, right_day, v_right + levels[i] * (peak - v_right), step)
    base = 0.5 * (v_left + v_right)
    start = cycle[0, slot]
    stop = cycle[6, slot]
    cycle[3, slot] = peak_day
    cycle[7, slot] = base
    cycle[8, slot] = peak - base
    cycle[9, slot] = area_under(curve, start, stop, step)
    quality = grade(day, from_day, y, w, snow, fit, j, left_day, peak_day)
    quality = max(quality, grade(day, from_day, y, w, snow, fit, j, peak_day, right_day))
    # a half that the edge of the looks cuts while the curve still moves: its baseline is not known
    first, last = ends
    if (minima[0] == first and start - first * step < 20.0) or (minima[1] == last and last * step - stop < 20.0):
        quality = 9.0
    cycle[10, slot] = quality
    bounds[0, slot] = left_day
    bounds[1, slot] = right_day
    bounds[2, slot] = min(left_day, lowland(curve, minima[0], -1, v_left + 0.1 * (peak - v_left), step))
    bounds[3, slot] = max(right_day, lowland(curve, minima[1], 1, v_right + 0.1 * (peak - v_right), step))
    bounds[4, slot] = v_left
    bounds[5, slot] = v_right


# --- ranges of pixels ------------------------------------------------------------------------------------------------


@_jit
def _raise_floor(z: Any, y: Any, w: Any, fitted: Any, noise: float, work: Any) -> Any:
    """Raise the curve to its dormant value: the mean of it where it cannot be told from its low end.

    The low end is the lower 5 % quantile of the curve at its knots; what lies less than `noise` standard deviations
    of the looks above it belongs to the same dormant state. Without noise this is the quantile itself. Gives the
    standard deviation (lanes).
    """
    low = low_end(z, 0.05, work)
    # what smoothing alone leaves behind is not noise
    sigma = maximum(noise_above(y, w, fitted) - 0.005, 0.0)
    high = low + noise * sigma
    total, count = each(0.0), each(0.0)
    for k in range(z.shape[0]):
        v = load(z, k)
        dormant = v <= high
        total = total + where(dormant, v, 0.0)
        count = count + where(dormant, 1.0, 0.0)
    floor = total / maximum(count, 1.0)
    for k in range(z.shape[0]):
        store(z, k, maximum(floor, load(z, k)))
    return sigma


@_jit
def _gather(day: Any, y: Any, w: Any, j: int, first: float, last: float, slot: int, days: Any, ys: Any, ws: Any) -> int:
    """Copy the looks of [first, last] of pixel `j` into column `slot`; gives how many."""
    n = 0
    for t in range(day.size):
        if w[t, j] > 0.0 and first <= day[t] <= last:
            days[n, slot] = day[t]
            ys[n, slot] = y[t, j]
            ws[n, slot] = w[t, j]
            n += 1
    return n


@_jit
def _guess(p: Any, slot: int, left: float, top: float, right: float, dates: Any) -> None:
    """First parameters of a fit from the bases, the top and the dates ``(at least 7, LANES)`` of the smooth curve."""
    p[0, slot] = left
    p[1, slot] = top
    p[2, slot] = right
    p[3, slot] = dates[1, slot]
    p[4, slot] = np.log(min(max(3.93 / max(dates[2, slot] - dates[0, slot], 1.0), 0.01), 0.6))
    p[5, slot] = dates[5, slot]
    p[6, slot] = np.log(min(max(3.93 / max(dates[6, slot] - dates[4, slot], 1.0), 0.01), 0.6))


@_jit
def _refine(
    days: Any, ys: Any, ws: Any, rows: Any, used: int, p: Any, spread: Any, bounds: Any, prior: Any, levels: Any,
    dates: Any, work: Any, cycle: Any,
) -> None:  # fmt: skip
    """Fit the cycles of the first `used` columns; those that the looks carry replace ``cycle (11, LANES)``."""
    most = 0
    for j in range(used):
        most = max(most, rows[j])
    for j in range(LANES):
        first = rows[j] if j < used else 0
        for t in range(first, most):
            days[t, j] = 0.0
            ys[t, j] = 0.0
            ws[t, j] = 0.0
        if j >= used:
            p[:, j] = p[:, 0]
            bounds[:, j] = bounds[:, 0]
            spread[0, j] = spread[0, 0]
    fit(days, ys, ws, most, p, load(spread, 0), prior, _ROUNDS, _LEAST_NOISE, work)
    store(spread, 0, crossings(p, levels, load(bounds, 2) - 30.0, load(bounds, 3) + 30.0, dates))
    for j in range(used):
        peak = spread[0, j]
        base = 0.5 * (p[0, j] + p[2, j])
        amplitude = peak - base
        before = cycle[8, j]
        carried = bounds[2, j] - 5.0 < p[3, j] and p[3, j] < p[5, j] and p[5, j] < bounds[3, j] + 5.0
        carried = carried and 0.6 * before <= amplitude <= 1.7 * before
        carried = carried and min(peak - p[0, j], peak - p[2, j]) >= 0.5 * amplitude
        for i in range(7):
            carried = carried and np.isfinite(dates[i, j]) and (i == 0 or dates[i - 1, j] <= dates[i, j])
        if carried:
            for i in range(7):
                cycle[i, j] = dates[i, j]
            cycle[7, j] = base
            cycle[8, j] = amplitude
            cycle[9, j] = area(p, j, dates[0, j], dates[6, j])


@_jit
def _finish(count: int, origin: int, calendar: Any, out: Any) -> None:
    """Count the dates of the first `count` pixels from 1970 and give their days of the year.

    The year of a day is that of the nearest whole day, so that date and day of the year agree when both are rounded.
    `calendar` holds first days of years.
    """
    for year in range(out.shape[1]):
        for rank in range(2):
            for i in range(7):
                k = 0
                for pixel in range(count):
                    date = out[i, year, rank, pixel] + np.float32(origin)
                    out[i, year, rank, pixel] = date
                    if date == date:
                        whole = np.floor(date + np.float32(0.5))
                        while calendar[k] > whole:
                            k -= 1
                        while calendar[k + 1] <= whole:
                            k += 1
                        out[12 + i, year, rank, pixel] = date - calendar[k] + 1.0
                    else:
                        out[12 + i, year, rank, pixel] = np.nan


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
    origin: int,
    calendar: Any,
    prior: Any,
    rules: Any,
    out: Any,
) -> None:
    """Season metrics of the pixels [start, stop) of ``series (time, pixel)`` into ``out (METRICS, year, 2, pixel)``.

    `weights`, `snow`, `red` and `nir` are (time, pixel), or have no pixels where there are none. `grid` holds one
    lambda for all pixels, or several from which the V-curve chooses.
    """
    n_times = series.shape[0]
    y = np.zeros((n_times, LANES))
    w0 = np.zeros((n_times, LANES))
    w = np.zeros((n_times, LANES))
    fitted = np.zeros((n_times, LANES))
    reds = np.zeros((n_times, LANES))
    nirs = np.zeros((n_times, LANES))
    unused = np.zeros((n_times, LANES))
    snowy = np.zeros((n_times, LANES), np.uint8)
    work = np.zeros((max(6 * n_times, n_knots, 2 * n_times + 128), LANES))
    z = np.zeros((n_knots, LANES))
    g = np.zeros((n_knots, LANES))
    c = np.zeros((n_knots, LANES))
    noise = np.zeros((1, LANES))
    curve = np.zeros(n_knots)
    peaks = np.zeros(n_knots, np.int64)
    left = np.zeros(n_knots, np.int64)
    right = np.zeros(n_knots, np.int64)
    last_day = float(n_knots * step + 1)
    from_day = np.searchsorted(day, np.arange(n_knots * step + 2.0))
    # cycles that wait until as many as lanes are there to be fitted
    days = np.zeros((n_times, LANES))
    ys = np.zeros((n_times, LANES))
    ws = np.zeros((n_times, LANES))
    p = np.zeros((SIZE, LANES))
    spread = np.zeros((1, LANES))
    bounds = np.zeros((6, LANES))
    dates = np.zeros((7, LANES))
    cycle = np.zeros((11, LANES))
    rows = np.zeros(LANES, np.int64)
    owner = np.zeros(LANES, np.int64)
    waiting = 0
    reach = int(rules.reach_days // step)
    lam = each(grid[0])
    no_weights = np.zeros((0, 0), np.float32)
    # results are gathered in strips: rows of `out` lie far apart
    found = np.zeros((METRICS, years.size - 1, 2, _STRIP), np.float32)
    looks = np.zeros((years.size, LANES))
    gaps = np.zeros((years.size - 1, LANES))
    for strip in range(start, stop, _STRIP):
        end = min(strip + _STRIP, stop)
        found[:10] = np.nan
        found[10] = 255.0
        found[11] = 0.0
        for p0 in range(strip, end, LANES):
            width = min(LANES, end - p0)
            load_looks(series, weights, p0, width, y, w0)
            if red.shape[1] > 0:
                load_looks(red, no_weights, p0, width, reds, unused)
                load_looks(nir, no_weights, p0, width, nirs, unused)
                if snow.shape[1] > 0:
                    for t in range(n_times):
                        for j in range(width):
                            w0[t, j] = 0.0 if snow[t, p0 + j] > 0 else w0[t, j]
                for _ in range(2):
                    screen(y, reds, nirs, w0, day, rules.screen_dip, rules.screen_change, work)
            if rules.dip_depth > 0.0:
                despike(y, w0, day, rules.dip_depth, rules.dip_span, 50, work)
            if snow.shape[1] > 0:
                set_snow(snow, p0, width, y, w0, snowy)
            if grid.size > 1:
                lam = v_curve(y, w0, knot, frac, grid, z, fitted, g, c)
            solve(y, w0, knot, frac, lam, z, g, c)
            at_dates(z, knot, frac, fitted)
            for _ in range(rules.envelope):
                reweight(y, w0, fitted, w)
                solve(y, w, knot, frac, lam, z, g, c)
                at_dates(z, knot, frac, fitted)
            store(noise, 0, _raise_floor(z, y, w0, fitted, rules.dormant_noise, work))
            coverage(day, from_day, w0, years, last_day, looks, gaps)
            for j in range(width):
                set_none(looks, gaps, j, rules.min_looks, rules.max_gap, p0 - strip + j, found)
                if looks[years.size - 1, j] < rules.min_looks:
                    continue
                ends = believed(day, w0, j, step, n_knots)
                if ends[1] <= ends[0]:
                    continue
                for k in range(n_knots):
                    curve[k] = z[k, j]
                n = find_peaks(
                    curve, ends[0], ends[1], reach, rules.min_amplitude, rules.min_range_share, peaks, left, right
                )
                for i in range(n):
                    peak_day, peak = extreme(curve, peaks[i], step, 1.0)
                    # a fit may move the peak over New Year
                    if not years[0] - _NEAR_DAYS <= peak_day < years[-1] + _NEAR_DAYS:
                        continue
                    describe(
                        curve, day, from_day, y, w0, snowy, fitted, j, step, ends, (left[i], right[i]), peak_day, peak,
                        levels, rules.top_noise * noise[0, j], waiting, bounds, cycle,
                    )  # fmt: skip
                    if rules.refine:
                        first, last = bounds[2, waiting] - 5.0, bounds[3, waiting] + 5.0
                        rows[waiting] = _gather(day, y, w0, j, first, last, waiting, days, ys, ws)
                    if not rules.refine or rows[waiting] < _LEAST_LOOKS:
                        place(cycle, waiting, years, p0 - strip + j, found)
                        continue
                    top = cycle[7, waiting] + cycle[8, waiting]
                    _guess(p, waiting, bounds[4, waiting], top, bounds[5, waiting], cycle)
                    spread[0, waiting] = noise[0, j]
                    owner[waiting] = p0 - strip + j
                    waiting += 1
                    if waiting == LANES:
                        _refine(days, ys, ws, rows, waiting, p, spread, bounds, prior, levels, dates, work, cycle)
                        for slot in range(waiting):
                            place(cycle, slot, years, owner[slot], found)
                        waiting = 0
        if waiting > 0:
            _refine(days, ys, ws, rows, waiting, p, spread, bounds, prior, levels, dates, work, cycle)
            for slot in range(waiting):
                place(cycle, slot, years, owner[slot], found)
            waiting = 0
        _finish(end - strip, origin, calendar, found)
        for i in range(METRICS):
            for year in range(years.size - 1):
                for rank in range(2):
                    for k in range(end - strip):
                        out[i, year, rank, strip + k] = found[i, year, rank, k]


@_jit
def smooth_range(
    series: Any,
    weights: Any,
    start: int,
    stop: int,
    day: Any,
    knot: Any,
    frac: Any,
    step: int,
    grid: Any,
    rounds: int,
    prior: Any,
    rules: Any,
    out: Any,
) -> None:
    """Smooth curves of the pixels [start, stop) at the knots, ``out (knot, pixel)``; `grid` as above.

    Whittaker curves, in which with ``rules.refine`` each cycle is replaced by the double logistic of its looks.
    """
    n_times = series.shape[0]
    n_knots = out.shape[0]
    y = np.zeros((n_times, LANES))
    w0 = np.zeros((n_times, LANES))
    w = np.zeros((n_times, LANES))
    fitted = np.zeros((n_times, LANES))
    z = np.zeros((n_knots, LANES))
    g = np.zeros((n_knots, LANES))
    c = np.zeros((n_knots, LANES))
    noise = np.zeros((1, LANES))
    for p0 in range(start, stop, LANES):
        width = min(LANES, stop - p0)
        load_looks(series, weights, p0, width, y, w0)
        lam = each(grid[0])
        if grid.size > 1:
            lam = v_curve(y, w0, knot, frac, grid, z, fitted, g, c)
        solve(y, w0, knot, frac, lam, z, g, c)
        at_dates(z, knot, frac, fitted)
        for _ in range(rounds):
            reweight(y, w0, fitted, w)
            solve(y, w, knot, frac, lam, z, g, c)
            at_dates(z, knot, frac, fitted)
        store(noise, 0, noise_above(y, w0, fitted))
        for j in range(width):
            looks = 0
            for t in range(n_times):
                looks += 1 if w0[t, j] > 0.0 else 0
            for k in range(n_knots):
                out[k, p0 + j] = z[k, j] if looks >= 2 else np.nan
            if rules.refine and looks >= 2:
                _replace_cycles(y, w0, j, day, z[:, j].copy(), step, noise[0, j], rounds, prior, rules, out[:, p0 + j])


@_jit
def _replace_cycles(
    y: Any, w: Any, j: int, day: Any, curve: Any, step: int, noise: float, rounds: int, prior: Any, rules: Any, out: Any
) -> None:
    """Write the double logistic of each cycle of a curve over it, into ``out (knot,)``; one cycle to a lane."""
    first, last = believed(day, w, j, step, curve.size)
    if last <= first:
        return
    peaks = np.zeros(curve.size, np.int64)
    left = np.zeros(curve.size, np.int64)
    right = np.zeros(curve.size, np.int64)
    reach = int(rules.reach_days // step)
    n = find_peaks(curve, first, last, reach, rules.min_amplitude, rules.min_range_share, peaks, left, right)
    days = np.zeros((day.size, LANES))
    ys = np.zeros((day.size, LANES))
    ws = np.zeros((day.size, LANES))
    work = np.zeros((2 * day.size + 128, LANES))
    p = np.zeros((SIZE, LANES))
    dates = np.zeros((7, LANES))
    for begin in range(0, n, LANES):
        ws[:] = 0.0
        most = 0
        for slot in range(LANES):
            i = min(begin + slot, n - 1)
            top_day, top = extreme(curve, peaks[i], step, 1.0)
            left_day, v_left = extreme(curve, left[i], step, -1.0)
            right_day, v_right = extreme(curve, right[i], step, -1.0)
            for share, at in ((0.15, 0), (0.5, 1), (0.9, 2)):
                dates[at, slot] = rising(curve, left_day, top_day, v_left + share * (top - v_left), step)
                dates[6 - at, slot] = falling(curve, top_day, right_day, v_right + share * (top - v_right), step)
            foot = min(left_day, lowland(curve, left[i], -1, v_left + 0.1 * (top - v_left), step))
            toe = max(right_day, lowland(curve, right[i], 1, v_right + 0.1 * (top - v_right), step))
            most = max(most, _gather(day, y, w, j, foot - 5.0, toe + 5.0, slot, days, ys, ws))
            _guess(p, slot, v_left, top, v_right, dates)
        fit(days, ys, ws, most, p, each(noise), prior, rounds, _LEAST_NOISE, work)
        for slot in range(min(LANES, n - begin)):
            i = begin + slot
            for k in range(left[i], right[i] + 1):
                out[k] = lane(shape(p, each(float(k * step))), slot)
