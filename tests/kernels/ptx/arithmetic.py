"""Numbers of a GPU, bit by bit: fused multiply-adds, rounding in a given direction, formats of 16 bits."""

from __future__ import annotations

import numpy as np

# the bits of a register of each type, and as what NumPy computes with them; bf16 has no type in NumPy
_BITS = {8: np.dtype("u1"), 16: np.dtype("u2"), 32: np.dtype("u4"), 64: np.dtype("u8")}
_UNSIGNED = {f"{letter}{width}": bits for letter in "bu" for width, bits in _BITS.items()}
_SIGNED = {f"s{width}": np.dtype(f"i{width // 8}") for width in _BITS}
_FLOATS = {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8")}
TYPES = {"pred": np.dtype(bool), **_UNSIGNED, **_SIGNED, **_FLOATS, "bf16": _BITS[16]}
_SMALLEST = {np.dtype("f4"): np.float32(2.0**-126), np.dtype("f8"): np.float64(2.0**-1022)}


def bits_type(kind: str) -> np.dtype:
    """The NumPy type of the bits of a register of this PTX type."""
    return TYPES[kind] if kind == "pred" else _BITS[8 * TYPES[kind].itemsize]


def bits_of(x: np.ndarray) -> np.ndarray:
    """The bits of numbers, as unsigned integers; those of predicates as they are."""
    return x if x.dtype == bool else x.view(_BITS[8 * x.dtype.itemsize])


def flush(x: np.ndarray) -> np.ndarray:
    """Subnormal numbers become zeros of their sign."""
    small = np.abs(x) < _SMALLEST[x.dtype]
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if small.any() else x


def odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64; where that is not exact, the neighbour whose last bit is 1.

    Rounded to float32, in any direction, it then gives what a + b itself would give.
    """
    s = a + b
    t = s - a
    rest = (a - (s - t)) + (b - t)
    even = ((s.view(np.int64) & 1) == 0) & (rest != 0) & np.isfinite(rest)
    return np.where(even, np.nextafter(s, np.copysign(np.inf, rest)), s) if even.any() else s


def to_f32(x: np.ndarray, mode: str = "rn") -> np.ndarray:
    """float64 to float32: to nearest (rn), towards zero (rz) or down (rm)."""
    near = x.astype(np.float32)
    if mode == "rn":
        return near
    wide = near.astype(np.float64)
    down = (wide > x) & ((x > 0) | (mode == "rm"))
    up = (wide < x) & (x < 0) & (mode == "rz")
    near = np.where(down, np.nextafter(near, np.float32(-np.inf)), near)
    return np.where(up, np.nextafter(near, np.float32(np.inf)), near)


def add_f32(a: np.ndarray, b: np.ndarray, mode: str) -> np.ndarray:
    """a + b, rounded once as ``mode`` says."""
    return to_f32(odd_sum(a.astype(np.float64), b.astype(np.float64)), mode)


def fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray, mode: str = "rn") -> np.ndarray:
    """a b + c in float32, rounded once as ``mode`` says."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)  # 48 bits: exact
    if mode == "rn":
        s = product + c
        # rounding twice errs only at a tie, or at numbers so small that float32 keeps fewer bits
        unsure = ((s.view(np.int64) & 0x1FFFFFFF) == 0x10000000) | (np.abs(s) < 2.0**-125)
        if not unsure.any():
            return s.astype(np.float32)
    return to_f32(odd_sum(product, c), mode)


def fma_f64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c in float64, within one unit of the last place: product and sum as pairs of numbers, added up once."""
    product = a * b
    high_a, high_b = (x * 134217729.0 - (x * 134217729.0 - x) for x in (a, b))
    low_a, low_b = a - high_a, b - high_b
    rest = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    s = product + c
    t = s - product
    more = ((product - (s - t)) + (c - t)) + rest
    return np.where(np.isfinite(more), s + more, s)


def bf16_of(x: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers rounded to the nearest bfloat16."""
    bits = x.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def bf16_value(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers that bits of bfloat16 stand for."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quotient of integers, rounded towards zero; of what is divided by zero, nothing is said."""
    b = np.where(b == 0, b.dtype.type(1), b)
    q = a // b
    return q if a.dtype.kind == "u" else q + ((q < 0) & (q * b != a)).astype(a.dtype)


def upper_half(x: np.ndarray) -> np.ndarray:
    """float64 numbers without the lower 32 of their bits."""
    return (x.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)


def moved(exact: np.ndarray, argument: np.ndarray, relative: float, absolute: float = 0.0) -> np.ndarray:
    """Numbers off by an error, to a side that depends on the bits of the argument only."""
    hashed = bits_of(argument) * np.uint32(2654435761)
    sign = np.where((hashed >> np.uint32(31)) == 0, 1.0, -1.0)
    return (exact.astype(np.float64) * (1 + sign * relative) + sign * absolute).astype(exact.dtype)
