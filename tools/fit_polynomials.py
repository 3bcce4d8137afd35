"""Fit the polynomials of fastce/_kernels/*/*.h; run ``python tools/fit_polynomials.py``.

Prints the constants of the exp and log kernels as C hexadecimal floats, lowest power first.

Method.  The relative error of a kernel is ``weight * (q - target)``, linear in the coefficients
of the polynomial q.  Remez' exchange finds the q that makes its maximum smallest: solve for a q
whose error alternates with equal height on a reference of n + 1 points, move the reference to the
extrema of that error, repeat until nothing moves (J.-M. Muller, Elementary Functions, chapter on
minimax polynomials).  The exchange runs on a dense Chebyshev grid and needs no root finder.

Rounding.  Coefficients are rounded one at a time from the lowest power up.  Each is tried rounded
down and rounded up; all later ones are fitted again around it, and the better choice stays.
The later coefficients thus absorb the rounding errors of the earlier ones.

Check.  The rounded polynomial is evaluated again on another, uniform grid.  All reported errors
are those of the polynomial alone, evaluated exactly; float arithmetic adds its own roundings.
"""

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import numpy as np
from mpmath import mp, mpf

mp.prec = 200  # targets lose about 60 bits to cancellation beside zero
GRID = 2000  # even, so that the grid of a symmetric interval avoids zero
CHECK_GRID = 20001
FORMATS = {24: (np.float32, np.uint32), 53: (np.float64, np.uint64)}


class Kernel(NamedTuple):
    """A formula whose relative error is ``weight(x) * (q(x) - target(x))`` on [low, high]."""

    formula: str
    low: mpf
    high: mpf
    target: Callable[[mpf], mpf]
    weight: Callable[[mpf], mpf]

    def error(self, coefficients: list[mpf], x: mpf) -> mpf:
        """Return the relative error at `x`."""
        return self.weight(x) * (mp.polyval(coefficients[::-1], x) - self.target(x))


# The intervals are a hair wider than needed, for the rounding of the reduced argument.
def exp_kernel(table_bits: int) -> Kernel:
    """Return the kernel of exp on what is left after a table of 2^(i / 2^table_bits)."""
    high = mpf("0.3467") / 2**table_bits  # ln2 / 2 = 0.34657...
    return Kernel(
        f"exp(x) = 1 + x + x^2 q(x), |x| <= ln2 / 2^{table_bits + 1}",
        -high,
        high,
        lambda x: (mp.expm1(x) - x) / x**2,
        lambda x: x**2 / mp.exp(x),
    )


LOG = Kernel(
    "log(1+f) = 2s + s x q(x), s = f/(2+f), x = s^2",
    mpf(0),
    mpf("0.1716") ** 2,  # f = sqrt(2) - 1 and f = sqrt(1/2) - 1 give |s| = 0.17157...
    lambda x: 2 * (mp.atanh(mp.sqrt(x)) / mp.sqrt(x) - 1) / x,
    lambda x: x * mp.sqrt(x) / (2 * mp.atanh(mp.sqrt(x))),
)

LOG_UP_TO_2 = LOG._replace(formula=f"{LOG.formula}, 0 <= f <= 1", high=mpf("0.1112"))

LOG_DIRECT = Kernel(
    "log(1+f) = f + f^2 q(f), sqrt(1/2) - 1 <= f <= 1/2",
    mpf("-0.2929"),
    mpf("0.5001"),
    lambda x: (mp.log1p(x) - x) / x**2,
    lambda x: abs(x**2 / mp.log1p(x)),
)

# The entries 1 + i / 16 of the table are the middles of their intervals; the first is the widest.
LOG_AFTER_TABLE = Kernel(
    "log(1+x) = x + x^2 q(x), |x| <= 1/32",
    mpf("-0.0313"),
    mpf("0.0313"),
    lambda x: (mp.log1p(x) - x) / x**2,
    lambda x: abs(x**2 / mp.log1p(x)),
)

# Beyond 1/2 the quotient of exps loses nothing.
TANH = Kernel(
    "tanh(u) = u + u x q(x), x = u^2, |u| <= 1/2",
    mpf(0),
    mpf("0.2501"),
    lambda x: (mp.tanh(mp.sqrt(x)) / mp.sqrt(x) - 1) / x,
    lambda x: x * mp.sqrt(x) / mp.tanh(mp.sqrt(x)),
)


def drop_extra(reference: list[int], error: list[mpf], size: int) -> None:
    """Drop the lowest of the alternating extrema, keeping the alternation and the highest."""
    while len(reference) > size:
        height = [abs(error[p]) for p in reference]
        low = height.index(min(height))
        if len(reference) == size + 1 or low in (0, len(reference) - 1):
            del reference[0 if height[0] < height[-1] else -1]
        else:
            low -= height[low - 1] < height[low + 1]  # its neighbours have one sign: one goes too
            del reference[low : low + 2]


def fit(kernel: Kernel, given: list[mpf], degree: int) -> tuple[list[mpf], mpf]:
    """Return the best coefficients that begin with the given ones, and the largest error."""
    nodes = [(1 - mp.cos(mp.pi * i / (GRID - 1))) / 2 for i in range(GRID)]
    points = [kernel.low + (kernel.high - kernel.low) * node for node in nodes]
    points = [x for x in points if x != 0]  # the error at zero is zero
    target = [kernel.target(x) for x in points]
    # With powers from len(given) on, what alternates is the error times sign(x)^len(given).
    weight = [kernel.weight(x) * mp.sign(x) ** len(given) for x in points]
    powers = range(len(given), degree + 1)
    size = len(powers) + 1
    reference = [(len(points) - 1) * (2 * i + 1) // (2 * size) for i in range(size)]
    for _ in range(100):
        rows = [[points[p] ** k for k in powers] for p in reference]
        rows = [[*row, (-1) ** i / weight[reference[i]]] for i, row in enumerate(rows)]
        rest = [target[p] - mp.polyval([0, *given[::-1]], points[p]) for p in reference]
        *free, level = mp.lu_solve(mp.matrix(rows), mp.matrix(rest))
        reverse = [*given, *free][::-1]
        triples = zip(points, target, weight, strict=True)
        error = [w * (mp.polyval(reverse, x) - t) for x, t, w in triples]
        highest = max(abs(e) for e in error)
        if highest <= abs(level) * (1 + mpf(10) ** -12):
            return reverse[::-1], highest
        runs = groupby(range(len(error)), key=lambda p: error[p] > 0)
        reference = [max(run, key=lambda p: abs(error[p])) for _, run in runs]
        drop_extra(reference, error, size)
    raise ArithmeticError(f"the exchange for {kernel.formula} does not settle; enlarge GRID")


def fit_rounded(kernel: Kernel, degree: int, bits: int) -> list[mpf]:
    """Return coefficients of `bits` bits, rounded in turn from the lowest power."""
    coefficients, _ = fit(kernel, [], degree)
    for k in range(degree + 1):
        both = [mpf(coefficients[k], prec=bits, rounding=way) for way in "fc"]
        fits = [fit(kernel, [*coefficients[:k], c], degree) for c in both]
        coefficients, _ = min(fits, key=lambda pair: pair[1])
    return coefficients


def show(name: str, x: mpf, bits: int) -> None:
    """Print an exactly representable constant for C."""
    mantissa, exponent = float(x).hex().split("p")
    suffix = "f" if bits == 24 else ""
    print(f"{name:7} {mantissa.rstrip('0')}p{exponent}{suffix}".replace(".p", ".0p"))


def print_fit(kernel: Kernel, degree: int, bits: int) -> None:
    """Fit, round, check and print one polynomial."""
    _, ideal = fit(kernel, [], degree)
    rounded = fit_rounded(kernel, degree, bits)
    points = (x for x in mp.linspace(kernel.low, kernel.high, CHECK_GRID) if x != 0)
    worst, argument = max((abs(kernel.error(rounded, x)), x) for x in points)
    print(f"\nfloat of {bits} bits: {kernel.formula}, q of degree {degree}")
    print(f"relative error {mp.nstr(ideal * 2**bits, 4)} * 2^-{bits} before rounding,", end=" ")
    print(f"{mp.nstr(worst * 2**bits, 4)} * 2^-{bits} after, at x = {float(argument):.9g}")
    for k, c in enumerate(rounded):
        show(f"q{k}", c, bits)


def scaled_table(table_bits: int, bits: int) -> tuple[np.ndarray, mpf, float]:
    """Return floats close to ``scale * 2^(i / n)``, i < n, that scale, and how close, in 2^-bits.

    The scale is free: a factor of all exps of a row.  There is one for which all entries lie closer
    to floats than half a unit, as in S. Gal's accurate tables.  Tried are all first entries in
    [1, 2) of float32, a fixed sample of those of float64, in long double.
    """
    n, float_type = 2**table_bits, FORMATS[bits][0]
    if bits == 24:
        candidates = np.arange(1 << 23, 1 << 24, dtype=np.int64)
    else:
        candidates = np.random.default_rng(0).integers(1 << 52, 1 << 53, 1 << 25)
    best = None
    for first in np.array_split(candidates, 64):
        steps = [np.longdouble(mp.nstr(mp.mpf(2) ** (mpf(i) / n), 25)) for i in range(n)]
        exact = np.multiply.outer(np.array(steps), first.astype(np.longdouble))
        unit = np.where(exact >= np.longdouble(2) ** bits, 2, 1)
        off = (np.rint(exact / unit) * unit / exact - 1).astype(float)
        spread = off.max(0) - off.min(0)
        k = int(spread.argmin())
        if best is None or spread[k] < best[1]:
            best = int(first[k]), spread[k], (off.max(0)[k] + off.min(0)[k]) / 2
    first, spread, middle = best
    scale = mpf(first) / 2 ** (bits - 1) * (1 + mpf(middle))
    entries = [mpf(scale * mp.mpf(2) ** (mpf(i) / n), prec=bits) for i in range(n)]
    return np.array([mp.nstr(e, 25) for e in entries]).astype(float_type), scale, spread / 2 * 2.0**bits


def print_table(table_bits: int, bits: int) -> None:
    """Print the bits of a table's entries, less those of 1.0 and of i / n in the exponent field."""
    n, field, float_type, int_type = 2**table_bits, bits - 1, *FORMATS[bits]
    one = int(np.array(1, float_type).view(int_type))
    entries, scale, distance = scaled_table(table_bits, bits)
    print(f"\nfloat of {bits} bits: table of {float(scale).hex()} * 2^(i / {n}),", end=" ")
    print(f"off by at most {distance:.3g} * 2^-{bits}")
    for i, entry in enumerate(entries.view(int_type)):
        pattern = (int(entry) - one - (i << (field - table_bits))) % 2 ** (8 * np.dtype(int_type).itemsize)
        print(f"0x{pattern:x}", end=", " if i + 1 < n else "\n")


def close_to_float64(i: int, n: int) -> tuple[mpf, mpf]:
    """Return c near 1 / (1 + i / n) whose -log c is almost a float64, and that."""
    unit = mpf(2) ** -53
    best = (mpf(1), mpf(0))
    if i:
        middle = mpf(1 / (1 + mpf(i) / n), prec=53)
        tried = [middle + k * 2**25 * unit for k in range(-2000, 2001)]
        off = [abs(mpf(-mp.log(c), prec=53) / -mp.log(c) - 1) for c in tried]
        c = tried[off.index(min(off))]
        best = c, mpf(-mp.log(c), prec=53)
    return best


def print_log_table(table_bits: int) -> None:
    """Print c close to 1 / (1 + i / n), i < n, and -log c, as float64."""
    n = 2**table_bits
    print(f"\nfloat of 53 bits: table of c close to 1 / (1 + i / {n}), then of -log c")
    for row in zip(*(close_to_float64(i, n) for i in range(n)), strict=True):
        print(", ".join(float(x).hex() for x in row))


def print_ln2(bits: int, count_bits: int) -> None:
    """Print log2(e) and ln2 = hi + lo, where n * hi is exact for |n| <= 2^count_bits."""
    hi = mpf(mp.ln2, prec=bits - count_bits)
    lo = mpf(mp.ln2 - hi, prec=bits)
    print(f"\nfloat of {bits} bits: n * LN2_HI is exact for |n| <= {2**count_bits};", end=" ")
    print(f"LN2_HI + LN2_LO - ln2 = {mp.nstr(hi + lo - mp.ln2, 4)}")
    for name, x in ("LOG2E", mpf(1 / mp.ln2, prec=bits)), ("LN2_HI", hi), ("LN2_LO", lo):
        show(name, x, bits)


if __name__ == "__main__":
    for table_bits, degree, bits in (0, 4, 24), (3, 2, 24), (4, 1, 24), (0, 9, 53), (4, 4, 53):
        print_fit(exp_kernel(table_bits), degree, bits)
        if table_bits:
            print_table(table_bits, bits)
    fits = (LOG, 6), (LOG, 2), (LOG_UP_TO_2, 4), (LOG_UP_TO_2, 9), (LOG_AFTER_TABLE, 7), (LOG_AFTER_TABLE, 3)
    for kernel, degree in fits:
        print_fit(kernel, degree, 53)
    print_fit(LOG_DIRECT, 9, 24)
    for degree, bits in (4, 24), (9, 53):
        print_fit(TANH, degree, bits)
    print_log_table(4)
    print_ln2(24, 10)
    print_ln2(53, 12)
