# mypy: allow-untyped-defs
"""Vectors in numba: several float32 that a kernel treats as one number and numba keeps in registers.

What a kernel writes for one pixel becomes one instruction for eight, whatever the compiler thinks of a loop:
numba's own vectorisation gives up silently. The functions below write the instructions of such kernels: in
compiled code they are called without the first argument, the builder.
"""

import operator
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

__all__ = [
    "CODES",
    "DTYPES",
    "FLOATS",
    "LANES",
    "LINE",
    "VERSION",
    "address",
    "any_set",
    "choose",
    "compiled",
    "converted",
    "define",
    "either_nan",
    "emitted",
    "fetch",
    "fused",
    "get",
    "inlined",
    "least",
    "load_counts",
    "most",
    "number",
    "prefetch",
    "put",
    "put_counts",
    "splat",
    "spread",
    "sqrt",
    "tally",
]

DTYPES: Final = ("uint16", "int32", "float32")
CODES: Final = ("int8", "int16", "float32")
LANES: Final = 16  # pixels of a vector: two registers of AVX2, so that one sum need not wait for the other
VERSION: Final = zlib.crc32(Path(__file__).read_bytes())
"""Changes with this file, of which numba's cache of the kernels knows nothing."""


class _Vector(types.Type):
    """Some float32 side by side; as the result of a comparison all bits of a lane are set, or none."""


VECTOR: Final = _Vector(f"vector of {LANES} float32")
FLOATS: Final = ir.VectorType(ir.FloatType(), LANES)
_BITS: Final = ir.VectorType(ir.IntType(32), LANES)
_INDEX: Final = ir.IntType(32)
LINE: Final = types.float32[::1]


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS)


def define(operation: Any, emit: Callable[..., Any], gives: Any, *takes: Any) -> None:
    """Let a kernel's ``operation`` be the instructions that ``emit`` writes; an array is given as its address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [context.make_array(kind) if isinstance(kind, types.Array) else None for kind in takes]
        pairs = zip(arrays, args, strict=True)
        result = emit(builder, *(array(context, builder, a).data if array else a for array, a in pairs))
        return context.get_dummy_value() if gives is types.void else result

    template = type("Template", (ConcreteTemplate,), {"key": operation, "cases": [signature(gives, *takes)]})
    infer_global(operation, types.Function(template))
    lower_builtin(operation, *takes)(generate)


def emitted(gives: Any, *takes: Any) -> Callable[..., Any]:
    """Let a call from a kernel be the instructions that the function writes."""

    def decorate(emit: Callable[..., Any]) -> Callable[..., Any]:
        define(emit, emit, gives, *takes)
        return emit

    return decorate


def _arithmetic(name: str) -> Callable[..., Any]:
    return lambda builder, a, b: getattr(builder, name)(a, b, flags=("contract",))


def _comparison(sign: str) -> Callable[..., Any]:
    """Compare as Python does, for which NaN differs from everything and is not less than anything."""
    test = "fcmp_unordered" if sign == "!=" else "fcmp_ordered"
    return lambda builder, a, b: _mask(builder, getattr(builder, test)(sign, a, b))


def _bitwise(name: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.bitcast(
        getattr(builder, name)(builder.bitcast(a, _BITS), builder.bitcast(b, _BITS)), FLOATS
    )


def _mask(builder: Any, truth: Any) -> Any:
    return builder.bitcast(builder.sext(truth, _BITS), FLOATS)


def _truth(builder: Any, mask: Any) -> Any:
    return builder.icmp_signed("<", builder.bitcast(mask, _BITS), ir.Constant(_BITS, None))


def _call(builder: Any, name: str, *operands: Any, flags: tuple[str, ...] = ()) -> Any:
    """Call LLVM's function of vectors like the operands."""
    kind = operands[0].type
    whole = ir.FunctionType(kind, [kind] * len(operands))
    function = cgutils.get_or_insert_function(builder.module, whole, f"{name}.v{kind.count}f32")
    return builder.call(function, operands, fastmath=flags)


def splat(builder: Any, scalar: Any) -> Any:
    """Instructions that make a vector of one value."""
    first = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, _INDEX(0))
    return builder.shuffle_vector(first, first, ir.Constant(_BITS, None))


def address(builder: Any, data: Any, at: Any, kind: Any = FLOATS) -> Any:
    """Address of what an array holds at a place, as that of a vector."""
    return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())


def converted(dtype: str) -> Callable[..., Any]:
    """Give the load of counts of a type as float32."""
    size = np.dtype(dtype).itemsize
    kind = FLOATS if dtype == "float32" else ir.VectorType(ir.IntType(8 * size), LANES)

    def emit(builder: Any, line: Any, at: Any) -> Any:
        counts = builder.load(address(builder, line, at, kind), align=size)
        if kind is FLOATS:
            return counts
        return (builder.uitofp if dtype == "uint16" else builder.sitofp)(counts, FLOATS)

    return emit


define(operator.add, _arithmetic("fadd"), VECTOR, VECTOR, VECTOR)
define(operator.iadd, _arithmetic("fadd"), VECTOR, VECTOR, VECTOR)
define(operator.sub, _arithmetic("fsub"), VECTOR, VECTOR, VECTOR)
define(operator.mul, _arithmetic("fmul"), VECTOR, VECTOR, VECTOR)
define(operator.truediv, _arithmetic("fdiv"), VECTOR, VECTOR, VECTOR)
define(operator.lt, _comparison("<"), VECTOR, VECTOR, VECTOR)
define(operator.le, _comparison("<="), VECTOR, VECTOR, VECTOR)
define(operator.eq, _comparison("=="), VECTOR, VECTOR, VECTOR)
define(operator.ne, _comparison("!="), VECTOR, VECTOR, VECTOR)
define(operator.and_, _bitwise("and_"), VECTOR, VECTOR, VECTOR)
define(operator.or_, _bitwise("or_"), VECTOR, VECTOR, VECTOR)
define(abs, lambda builder, a: _call(builder, "llvm.fabs", a), VECTOR, VECTOR)


@emitted(VECTOR, VECTOR)
def sqrt(builder, a):
    """Square root of each lane."""
    return _call(builder, "llvm.sqrt", a)


@emitted(VECTOR, VECTOR, VECTOR)
def least(builder, a, b):
    """Smaller of two values that are not NaN, by one instruction."""
    return _call(builder, "llvm.minnum", a, b, flags=("nnan",))


@emitted(VECTOR, VECTOR, VECTOR)
def most(builder, a, b):
    """Larger of two values that are not NaN, by one instruction."""
    return _call(builder, "llvm.maxnum", a, b, flags=("nnan",))


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Instruction ``a b + c`` with one rounding, on every processor."""
    return _call(builder, "llvm.fma", a, b, c)


@emitted(VECTOR, VECTOR, VECTOR, VECTOR)
def choose(builder, mask, a, b):
    """``a`` where the mask is set, else ``b``."""
    return builder.select(_truth(builder, mask), a, b)


@emitted(types.boolean, VECTOR)
def any_set(builder, mask):
    """Whether the mask is set in any lane."""
    bits = builder.bitcast(_truth(builder, mask), ir.IntType(LANES))
    return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))


@emitted(VECTOR, VECTOR, VECTOR)
def either_nan(builder, a, b):
    """Mask of the lanes where one of two is NaN."""
    return _mask(builder, builder.fcmp_unordered("uno", a, b))


@emitted(VECTOR, VECTOR, VECTOR)
def tally(builder, tally, mask):
    """Add 1 where the mask is set; a tally is a vector of integers, 0 at first."""
    return builder.bitcast(builder.sub(builder.bitcast(tally, _BITS), builder.bitcast(mask, _BITS)), FLOATS)


@emitted(VECTOR, VECTOR)
def number(builder, tally):
    """Number that a tally has reached, as float32."""
    return builder.sitofp(builder.bitcast(tally, _BITS), FLOATS)


@emitted(VECTOR, types.float32)
def spread(builder, scalar):
    """Vector of one value."""
    return splat(builder, scalar)


@emitted(VECTOR, LINE, types.uint64)
def get(builder, line, at):
    """Lanes of a line of float32 from a place on."""
    return builder.load(address(builder, line, at), align=4)


def load_counts(line, at):
    """Raw counts from a place on, as float32."""


def fetch(line, at):
    """Ask memory for what lies at a place, be it within the line or not, without waiting for it."""


def prefetch(builder: Any, line: Any, at: Any) -> None:
    """Write the instruction of `fetch`."""
    place, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    whole = ir.FunctionType(ir.VoidType(), [place, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, whole, "llvm.prefetch.p0")
    read, second_level, data = number(0), number(2), number(1)
    builder.call(function, [builder.bitcast(builder.gep(line, [at]), place), read, second_level, data])


for _type in sorted({*DTYPES, *CODES}):
    _kind = types.Array(getattr(types, _type), 1, "C", readonly=True)
    define(load_counts, converted(_type), VECTOR, _kind, types.uint64)
    define(fetch, prefetch, types.void, _kind, types.uint64)


@emitted(types.void, LINE, types.uint64, VECTOR)
def put(builder, line, at, vector):
    """Store lanes in a line of float32 from a place on."""
    builder.store(vector, address(builder, line, at), align=4)


@emitted(types.void, types.uint16[::1], types.uint64, VECTOR)
def put_counts(builder, line, at, vector):
    """Store lanes that are whole numbers in a line of uint16 from a place on."""
    kind = ir.VectorType(ir.IntType(16), LANES)
    builder.store(builder.fptoui(vector, kind), address(builder, line, at, kind), align=2)


def compiled(function: Callable[..., Any], *, cache: bool = True, **options: Any) -> Callable[..., Any]:
    """Compile at the first call: once per machine if a cache folder is writable, else once per process.

    Division by zero gives inf or NaN, as in numpy: a check per pixel would prevent vectors.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, **options}
    try:
        return numba.njit(cache=cache, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's own can be written
        return numba.njit(**options)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of the kernel that calls it.

    Handing over the arrays, and counting the references to them, would cost as much as the work.
    """
    options = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    return compiled(function, cache=False, **options)
