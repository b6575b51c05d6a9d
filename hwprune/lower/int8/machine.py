"""`Machine`: how a CPU multiplies integers, and its functions of vectors as LLVM's text.

In: a `Target` of kind "cpu". Out: a `Machine`. What TIR cannot say (dot products of bytes, the high
half of a product) is imported as functions that are always inlined:

    hwprune_dot            <lanes x i32> (accumulators, a word of inputs, weights)
    hwprune_high_<n>       <n x i32> (a, b): doubling_high_mul of quantize/arithmetic.py
    hwprune_rounded_<n>    <n x i32> (x, shift to the right): rounding_divide
    hwprune_requantize_<n> <n x i32> (accumulators, multipliers, shifts to the right): both
    hwprune_scale_<n>      <n x i32> (accumulators, multipliers, start, shifts): the same where the
                           shifts are 1 or more and nothing leaves 32 bits; start is a half
    hwprune_leading_zeros  i32 (x)

Sources: Intel 64 and IA-32 manual (VPDPBUSD, VPMADDWD), Arm Architecture Reference Manual (SDOT,
SQRDMULH, SMLAL). A word is 32 bits: four bytes, or two int16 where bytes have no dot product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from hwprune.errors import LoweringError
from hwprune.host_cpu import read_cpu
from hwprune.target import Target, architecture, required_isa

BYTES, PAIRS = 4, 2  # inputs in a word
UNSIGNED = 128  # what makes an int8 a uint8
_X86_DOT = {16: "avx512.vpdpbusd.512", 8: "avx512.vpdpbusd.256"}
_X86_PAIRS = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}
_SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
VNNI = {16: ("avx512_vnni",), 8: ("avx512_vnni", "avx_vnni")}  # any of these


@dataclass(frozen=True)
class Machine:
    """Vectors of `lanes` int32; `word` inputs are multiplied and summed at a time.

    `unit` names the instruction. A value q is stored as q + `offset`: VPDPBUSD takes inputs without
    a sign, and so does VPMADDWD where one product is asked for (of a depthwise convolution).
    """

    unit: str
    lanes: int
    word: int
    offset: int = 0

    @property
    def stored(self) -> str:
        """The type of values in memory."""
        return "uint8" if self.offset else "int8"

    @property
    def source(self) -> str:
        """The type in which a convolution reads them."""
        return self.stored if self.word == BYTES else "int16"

    @property
    def weight(self) -> str:
        """The type of packed weights."""
        return "int8" if self.word == BYTES else "int16"

    @cached_property
    def library(self) -> str:
        """The functions of vectors, as LLVM's text."""
        widths = (4,) if self._arm else (4, 8, 16)
        high = _arm_high if self._arm else _x86_high
        parts = [self._dot(), _ZEROS]
        parts += [made(n) for made in (high, _rounded, _requantize, _scale) for n in widths]
        return "\n".join([*_declarations(self), *parts])

    @property
    def _arm(self) -> bool:
        return self.unit in ("sdot", "smlal")

    def _dot(self) -> str:
        if self.unit == "smlal":
            return _SMLAL
        n = self.lanes
        weights = f"<{4 * n} x i8>" if self.word == BYTES else f"<{2 * n} x i16>"
        made = {"vpdpbusd": _vpdpbusd, "vpmaddwd": _vpmaddwd, "sdot": _sdot}[self.unit](n)
        return f"""
define linkonce_odr <{n} x i32> @hwprune_dot(<{n} x i32> %acc, i32 %word, {weights} %w) {_INLINE} {{
  %first = insertelement <{n} x i32> poison, i32 %word, i32 0
  %x = shufflevector <{n} x i32> %first, <{n} x i32> poison, <{n} x i32> zeroinitializer
{made}
  ret <{n} x i32> %sum
}}"""


def machine_of(target: Target) -> Machine:
    """How a target multiplies integers, by the features that LLVM gives its code.

    Raises LoweringError for what is no CPU, or one of another architecture.
    """
    if target.kind != "cpu":
        raise LoweringError(f"no int8 kernels for {target.kind}", where=f"target {target.name!r}")
    kind, lanes = architecture(target, read_cpu()), target.vector_bits // 32
    features = set(required_isa(replace(target, isa=())))
    if kind == "aarch64":
        dots = "asimddp" in features
        return Machine("sdot", lanes, BYTES) if dots else Machine("smlal", lanes, PAIRS)
    if kind != "x86_64":
        raise LoweringError(
            f"no int8 kernels for {kind}", where=f"target {target.name!r}", hint="x86_64, aarch64"
        )
    if any(name in features for name in VNNI.get(lanes, ())):
        return Machine("vpdpbusd", lanes, BYTES, UNSIGNED)
    return Machine("vpmaddwd", lanes, PAIRS, UNSIGNED)


_INLINE = "alwaysinline nounwind"


def _declarations(machine: Machine) -> list[str]:
    n = machine.lanes
    vector = f"<{n} x i32>"
    if machine.unit == "vpdpbusd":
        return [f"declare {vector} @llvm.x86.{_X86_DOT[n]}({vector}, {vector}, {vector})"]
    if machine.unit == "vpmaddwd":
        pairs = f"<{2 * n} x i16>"
        return [f"declare {vector} @llvm.x86.{_X86_PAIRS[n]}({pairs}, {pairs})"]
    found = ["declare <4 x i32> @llvm.aarch64.neon.sqrdmulh.v4i32(<4 x i32>, <4 x i32>)"]
    if machine.unit == "sdot":
        found.append(f"declare <4 x i32> @{_SDOT}(<4 x i32>, <16 x i8>, <16 x i8>)")
    return found


def _vpdpbusd(n: int) -> str:
    v = f"<{n} x i32>"
    return f"""  %words = bitcast <{4 * n} x i8> %w to {v}
  %sum = call {v} @llvm.x86.{_X86_DOT[n]}({v} %acc, {v} %x, {v} %words)"""


def _vpmaddwd(n: int) -> str:
    v, pairs = f"<{n} x i32>", f"<{2 * n} x i16>"
    return f"""  %pairs = bitcast {v} %x to {pairs}
  %products = call {v} @llvm.x86.{_X86_PAIRS[n]}({pairs} %pairs, {pairs} %w)
  %sum = add {v} %acc, %products"""


def _sdot(_: int) -> str:
    return f"""  %bytes = bitcast <4 x i32> %x to <16 x i8>
  %sum = call <4 x i32> @{_SDOT}(<4 x i32> %acc, <16 x i8> %w, <16 x i8> %bytes)"""


# Weights lie as the first input's of four lanes, then the second's.
_SMLAL = f"""
define linkonce_odr <4 x i32> @hwprune_dot(<4 x i32> %acc, i32 %word, <8 x i16> %w) {_INLINE} {{
  %first = insertelement <2 x i32> poison, i32 %word, i32 0
  %pair = bitcast <2 x i32> %first to <4 x i16>
  %x0 = shufflevector <4 x i16> %pair, <4 x i16> poison, <4 x i32> zeroinitializer
  %x1 = shufflevector <4 x i16> %pair, <4 x i16> poison, <4 x i32> <i32 1, i32 1, i32 1, i32 1>
  %w0 = shufflevector <8 x i16> %w, <8 x i16> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %w1 = shufflevector <8 x i16> %w, <8 x i16> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %a0 = sext <4 x i16> %x0 to <4 x i32>
  %a1 = sext <4 x i16> %x1 to <4 x i32>
  %b0 = sext <4 x i16> %w0 to <4 x i32>
  %b1 = sext <4 x i16> %w1 to <4 x i32>
  %p0 = mul <4 x i32> %a0, %b0
  %p1 = mul <4 x i32> %a1, %b1
  %s0 = add <4 x i32> %acc, %p0
  %sum = add <4 x i32> %s0, %p1
  ret <4 x i32> %sum
}}"""


def _splat(kind: str, n: int, value: int) -> str:
    return "<" + ", ".join([f"{kind} {value}"] * n) + ">"


def _x86_high(n: int) -> str:
    """(x * m + 2^30) >> 31: even lanes and odd ones apart, as VPMULDQ has them."""
    v, half = f"<{n} x i32>", f"<{n // 2} x i64>"
    mask = ", ".join(f"i32 {i if i % 2 == 0 else n + i}" for i in range(n))

    def odd_even(name: str) -> str:
        return f"""  %{name}w = bitcast {v} %{name} to {half}
  %{name}s = shl {half} %{name}w, {_splat("i64", n // 2, 32)}
  %{name}e = ashr {half} %{name}s, {_splat("i64", n // 2, 32)}
  %{name}o = ashr {half} %{name}w, {_splat("i64", n // 2, 32)}"""

    return f"""
define linkonce_odr {v} @hwprune_high_{n}({v} %x, {v} %m) {_INLINE} {{
{odd_even("x")}
{odd_even("m")}
  %pe = mul {half} %xe, %me
  %po = mul {half} %xo, %mo
  %re = add {half} %pe, {_splat("i64", n // 2, 1 << 30)}
  %ro = add {half} %po, {_splat("i64", n // 2, 1 << 30)}
  %se = lshr {half} %re, {_splat("i64", n // 2, 31)}
  %so = shl {half} %ro, {_splat("i64", n // 2, 1)}
  %even = bitcast {half} %se to {v}
  %odd = bitcast {half} %so to {v}
  %high = shufflevector {v} %even, {v} %odd, <{n} x i32> <{mask}>
  ret {v} %high
}}"""


def _arm_high(n: int) -> str:
    v = f"<{n} x i32>"
    return f"""
define linkonce_odr {v} @hwprune_high_{n}({v} %x, {v} %m) {_INLINE} {{
  %high = call {v} @llvm.aarch64.neon.sqrdmulh.v4i32({v} %x, {v} %m)
  ret {v} %high
}}"""


def _rounded(n: int) -> str:
    """A shift to the right to the nearest, halves away from zero."""
    v = f"<{n} x i32>"
    ones = _splat("i32", n, 1)
    return f"""
define linkonce_odr {v} @hwprune_rounded_{n}({v} %x, {v} %shift) {_INLINE} {{
  %whole = shl {v} {ones}, %shift
  %mask = add {v} %whole, {_splat("i32", n, -1)}
  %half = lshr {v} %mask, {ones}
  %sign = ashr {v} %x, {_splat("i32", n, 31)}
  %limit = sub {v} %half, %sign
  %rest = and {v} %x, %mask
  %up = icmp sgt {v} %rest, %limit
  %one = sext <{n} x i1> %up to {v}
  %floor = ashr {v} %x, %shift
  %result = sub {v} %floor, %one
  ret {v} %result
}}"""


def _requantize(n: int) -> str:
    v = f"<{n} x i32>"
    return f"""
define linkonce_odr {v} @hwprune_requantize_{n}({v} %x, {v} %m, {v} %shift) {_INLINE} {{
  %high = call {v} @hwprune_high_{n}({v} %x, {v} %m)
  %result = call {v} @hwprune_rounded_{n}({v} %high, {v} %shift)
  ret {v} %result
}}"""


def _scale(n: int) -> str:
    """Halves go away from zero: what is negative is rounded with one less than a half."""
    v = f"<{n} x i32>"
    return f"""
define linkonce_odr {v} @hwprune_scale_{n}({v} %x, {v} %m, {v} %start, {v} %shift) {_INLINE} {{
  %high = call {v} @hwprune_high_{n}({v} %x, {v} %m)
  %sign = ashr {v} %high, {_splat("i32", n, 31)}
  %less = add {v} %high, %sign
  %nudged = add {v} %less, %start
  %result = ashr {v} %nudged, %shift
  ret {v} %result
}}"""


_ZEROS = f"""
declare i32 @llvm.ctlz.i32(i32, i1)
define linkonce_odr i32 @hwprune_leading_zeros(i32 %x) {_INLINE} {{
  %count = call i32 @llvm.ctlz.i32(i32 %x, i1 false)
  ret i32 %count
}}"""
