"""Eight float64 numbers as one value of compiled code, so that the kernels of this room say row operations directly.

A `Lanes` value lives in vector registers; arithmetic and comparisons work lane by lane, with plain IEEE rounding (no
fused multiply-add, no fast-math), so that a lane's numbers depend neither on its neighbours nor on the processor.
LLVM lowers the vectors to whatever width the machine has. Only for functions that Numba compiles; nothing here knows
of phenology.
"""

# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: ARG001, ARG002, ARG005 - Numba fixes the arguments of typing and lowering functions

from __future__ import annotations

import operator
from typing import Any

import numba
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

__all__ = ["LANES", "any_of", "each", "exp", "lane", "load", "maximum", "minimum", "pixels", "root", "store", "where"]

LANES = 8

#: llvmlite's module for making code, the one that Numba uses.
ir: Any = cgutils.ir  # type: ignore[attr-defined]

# compiled code calls these with other arguments than they are written with: nothing that a type checker could follow
_intrinsic: Any = intrinsic

_DOUBLE = ir.DoubleType()
_FLOAT = ir.FloatType()
_BITS = ir.IntType(64)
_VECTOR = ir.VectorType(_DOUBLE, LANES)
_INTEGERS = ir.VectorType(_BITS, LANES)
_FLAGS = ir.VectorType(ir.IntType(1), LANES)


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


class _MaskType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="LanesMask")


_lanes = _LanesType()
_mask = _MaskType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _FLAGS)


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * LANES)


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), zeros)


def _as_lanes(context: Any, builder: Any, value: Any, given: Any) -> Any:
    if given == _lanes:
        return value
    return _splat(builder, context.cast(builder, value, given, types.float64))


def _binary(symbol: Any, build: Any, result: Any) -> None:
    """Make an operator of two lanes, or of lanes and a number."""

    @infer_global(symbol)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and _lanes in args and all(a == _lanes or isinstance(a, types.Number) for a in args):
                return signature(result, *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_as_lanes(context, builder, v, t) for v, t in zip(args, sig.args, strict=True))
        return build(builder, a, b)

    for pair in ((_LanesType, _LanesType), (_LanesType, types.Number), (types.Number, _LanesType)):
        lower_builtin(symbol, *pair)(lower)


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _binary(_symbol, lambda builder, a, b, name=_name: getattr(builder, name)(a, b), _lanes)
for _symbol, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _binary(_symbol, lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b), _mask)


def _logical(symbol: Any, name: str) -> None:
    @infer_global(symbol)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(_mask, _mask, _mask) if tuple(args) == (_mask, _mask) else None

    lower_builtin(symbol, _MaskType, _MaskType)(lambda context, builder, sig, args: getattr(builder, name)(*args))


_logical(operator.and_, "and_")
_logical(operator.or_, "or_")


@infer_global(operator.invert)
class _Invert(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(_mask, _mask) if tuple(args) == (_mask,) else None


@lower_builtin(operator.invert, _MaskType)
def _invert(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.not_(args[0])


def _row_pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any, row_type: Any, width: Any) -> Any:
    struct = context.make_array(array_type)(context, builder, array)
    row = context.cast(builder, row, row_type, types.intp)
    return builder.gep(struct.data, [builder.mul(row, width)])


def _is_rows(array: Any) -> bool:
    return isinstance(array, types.Array) and array.ndim == 2 and array.layout == "C" and array.dtype == types.float64


@_intrinsic
def load(typing: Any, rows: Any, row: Any) -> Any:
    """Row of a float64 array (row, LANES)."""
    if not (_is_rows(rows) and isinstance(row, types.Integer)):
        return None

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        width = ir.Constant(ir.IntType(64), LANES)
        pointer = _row_pointer(context, builder, sig.args[0], args[0], args[1], sig.args[1], width)
        return builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=8)

    return _lanes(rows, row), code


@_intrinsic
def store(typing: Any, rows: Any, row: Any, value: Any) -> Any:
    """Write lanes to a row of a float64 array (row, LANES)."""
    if not (_is_rows(rows) and isinstance(row, types.Integer) and value == _lanes):
        return None

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        width = ir.Constant(ir.IntType(64), LANES)
        pointer = _row_pointer(context, builder, sig.args[0], args[0], args[1], sig.args[1], width)
        builder.store(args[2], builder.bitcast(pointer, _VECTOR.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.none(rows, row, value), code


@_intrinsic
def pixels(typing: Any, series: Any, row: Any, first: Any) -> Any:
    """LANES pixels from `first` on of a row of a contiguous float32 array (time, pixel)."""
    if not (
        isinstance(series, types.Array) and series.ndim == 2 and series.layout == "C" and series.dtype == types.float32
    ):
        return None

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        struct = context.make_array(sig.args[0])(context, builder, args[0])
        width = builder.extract_value(struct.shape, 1)
        pointer = _row_pointer(context, builder, sig.args[0], args[0], args[1], sig.args[1], width)
        pointer = builder.gep(pointer, [context.cast(builder, args[2], sig.args[2], types.intp)])
        narrow = ir.VectorType(_FLOAT, LANES)
        return builder.fpext(builder.load(builder.bitcast(pointer, narrow.as_pointer()), align=4), _VECTOR)

    return _lanes(series, row, first), code


@_intrinsic
def each(typing: Any, value: Any) -> Any:
    """One number in all lanes."""
    if not isinstance(value, types.Number):
        return None
    return _lanes(types.float64), lambda context, builder, sig, args: _splat(builder, args[0])


@_intrinsic
def lane(typing: Any, value: Any, index: Any) -> Any:
    """Number of one lane."""
    if value != _lanes or not isinstance(index, types.Integer):
        return None

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], context.cast(builder, args[1], sig.args[1], types.int32))

    return types.float64(_lanes, index), code


@_intrinsic
def where(typing: Any, mask: Any, yes: Any, no: Any) -> Any:
    """``yes`` where the mask is true, else ``no``; either may be a number."""
    if mask != _mask or any(v != _lanes and not isinstance(v, types.Number) for v in (yes, no)):
        return None

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_as_lanes(context, builder, v, t) for v, t in zip(args[1:], sig.args[1:], strict=True))
        return builder.select(args[0], a, b)

    return _lanes(mask, yes, no), code


def _choice(sign: str) -> Any:
    def typed(typing: Any, a: Any, b: Any) -> Any:
        if _lanes not in (a, b):
            return None

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, y = (_as_lanes(context, builder, v, t) for v, t in zip(args, sig.args, strict=True))
            return builder.select(builder.fcmp_ordered(sign, x, y), x, y)

        return _lanes(a, b), code

    return _intrinsic(typed)


#: The smaller or larger of two, the second one where either is NaN.
minimum = _choice("<")
maximum = _choice(">")


@_intrinsic
def any_of(typing: Any, mask: Any) -> Any:
    """True if any lane of the mask is."""
    if mask != _mask:
        return None

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(_mask), code


@_intrinsic
def root(typing: Any, value: Any) -> Any:
    """Square root."""
    if value != _lanes:
        return None

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.sqrt.v{LANES}f64"
        )
        return builder.call(function, args)

    return _lanes(_lanes), code


#: Adding this to a number below 2^51 leaves its nearest integer in the low bits.
_ROUNDER = 6755399441055744.0


@_intrinsic
def _power_of_two(typing: Any, rounded: Any) -> Any:
    """2^n from ``n + _ROUNDER``, |n| below 1000."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INTEGERS)
        exponent = builder.shl(bits, ir.Constant(_INTEGERS, [52] * LANES))
        one = ir.Constant(_INTEGERS, [1023 << 52] * LANES)
        return builder.bitcast(builder.add(exponent, one), _VECTOR)

    return _lanes(_lanes), code


@numba.njit(inline="never", error_model="numpy", cache=True)
def exp(x: Any) -> Any:
    """Exponential of numbers clipped to -600..600, to about 1e-15 relative.

    Cody & Waite's reduction to |r| <= ln(2) / 2, there the Taylor polynomial of degree 12.
    """
    x = maximum(minimum(x, 600.0), -600.0)
    rounded = x * 1.4426950408889634 + _ROUNDER
    n = rounded - _ROUNDER
    r = x - n * 0.693145751953125 - n * 1.42860682030941723212e-6
    p = each(1.0 / 479001600.0)
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * _power_of_two(rounded)
