"""The structs of ``src/api.h`` in Python, field by field; what each field means is said there.

A struct is made from numbers and tensors and refuses what its kernel cannot take: every tensor
has the element type that the kernel reads, lies densely in the memory of the CPU and has as many
elements as the numbers say, and every number fits its field. So no kernel reads past an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import Structure, c_double, c_int32, c_int64, c_void_p, sizeof
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sanrobust.errors import UsageError
from sanrobust.kernels.relations import Delta

REFLECT, ZEROS = 0, 1
FLOAT, DOUBLE = 0, 1
SUBTRACTION, HADAMARD, DOT, CONCATENATION = range(4)
DELTAS: dict[Delta, int] = {"subtraction": SUBTRACTION, "hadamard": HADAMARD, "dot": DOT,
                            "concatenation": CONCATENATION}
LRL, L, LRLRL = range(3)
# Signs are kept as bits in words of 16.
SIGNS_PER_WORD = 16
HINT = "call sanrobust.kernels.functional, or use backend='reference'"

_ELEMENTS = {FLOAT: torch.float32, DOUBLE: torch.float64}
_OTHER_DTYPES = {"stats": torch.float64, "moments": torch.float64, "codes": torch.uint8,
                 "pool_codes": torch.uint8,
                 "signs": torch.int16, "in_signs": torch.int16, "out_signs": torch.int16}


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's elements begin; None for None."""
    return None if tensor is None else tensor.data_ptr()


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor whose elements lie in memory as they are meant, one after another."""
    return tensor.resolve_neg().contiguous()


def sign_words(channels: int) -> int:
    """Return how many words hold one bit for each of ``channels``."""
    return -(-channels // SIGNS_PER_WORD)


def pair_words(hidden: int, delta: int, mapping: int) -> int:
    """Return how many words of signs a pairwise forward pass keeps of each pair."""
    layers = {L: 0, LRL: 1, LRLRL: 2}.get(mapping, 0)
    return layers * sign_words(hidden) + int(delta == DOT)


def require_place(name: str, tensor: Tensor) -> None:
    """Raise UsageError unless ``tensor`` has all its elements in the memory of the CPU."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise UsageError(f"{name} of a native kernel must be a dense tensor on the CPU",
                         seen=f"it is {tensor.layout} on {tensor.device}", hint=HINT)


def require_memory(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise UsageError unless a kernel can read ``tensor`` where it lies, as ``dtype``."""
    require_place(name, tensor)
    if tensor.dtype != dtype:
        raise UsageError(f"{name} of this native call must be {dtype}",
                         seen=f"it is {tensor.dtype}", hint=HINT)
    if not tensor.is_contiguous() or tensor.is_neg():
        raise UsageError(f"{name} of a native kernel must lie in memory as it is meant",
                         seen=f"it is a view with strides {tensor.stride()}", hint=HINT)


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Arguments(Structure):
    """What a kernel is called with.

    Args:
        values: numbers and tensors by the names of the fields; what is left out is 0 or null.

    Raises UsageError for a value that the kernel cannot take.
    """

    # Tensors that may be longer than what is read of them.
    roomy: frozenset[str] = frozenset()

    def __init__(self, **values: float | Tensor | None) -> None:
        tensors = {name: each for name, each in values.items() if isinstance(each, Tensor)}
        numbers = {name: each for name, each in values.items() if not isinstance(each, Tensor)}
        _require_numbers(self, numbers)
        super().__init__(**numbers)
        needed = self.elements() if tensors else {}
        dtype = _ELEMENTS[getattr(self, "element", FLOAT)]
        for name, tensor in tensors.items():
            require_memory(name, tensor, _OTHER_DTYPES.get(name, dtype))
            _require_elements(name, tensor, needed[name], roomy=name in self.roomy)
            setattr(self, name, address(tensor))

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have for the numbers of this struct."""
        raise NotImplementedError


def _require_numbers(struct: Structure, numbers: Mapping[str, float | None]) -> None:
    bits = _whole_numbers(type(struct))
    for name, number in numbers.items():
        if name in bits and not 0 <= (number or 0) < 1 << (bits[name] - 1):
            raise UsageError(f"{name} of a native kernel must be a number of {bits[name]} "
                             "bits that is not negative", seen=f"it is {number}", hint=HINT)
    if "element" in numbers and numbers["element"] not in _ELEMENTS:
        raise UsageError("elements of a native kernel must be float32 or float64",
                         seen=f"their kind is {numbers['element']}", hint=HINT)


@cache
def _whole_numbers(struct: type[Structure]) -> dict[str, int]:
    """How many bits each whole number of a struct has."""
    return {name: 8 * sizeof(kind) for name, kind, *_ in struct._fields_
            if kind in (c_int32, c_int64)}


def _require_elements(name: str, tensor: Tensor, needed: int, *, roomy: bool) -> None:
    if tensor.numel() < needed or (tensor.numel() > needed and not roomy):
        raise UsageError(f"{name} of this native call must have {needed} elements",
                         seen=f"its shape is {tuple(tensor.shape)}", hint=HINT)


_SHAPE = [*_fields(c_int64, "images height width"),
          *_fields(c_int32, "relation hidden groups channels footprint padding element threads")]


class PairwiseArgs(Arguments):
    """Arguments of the pairwise operator."""

    _fields_ = [*_SHAPE, *_fields(c_int32, "table_per_pixel table_by_place delta mapping"),
                *_fields(c_void_p, "qkv w1 w1t w2 w2t table offset w_mid w_mid_t b_mid scale shift "
                                   "y out alpha signs grad grad_qkv grad_w1t grad_w2t grad_table "
                                   "moments slope")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        around, hidden = self.footprint ** 2, self.hidden
        compared = {DOT: 1, CONCATENATION: 0}.get(self.delta, self.relation)
        first, second = hidden * compared, 0 if self.mapping == L else self.groups * hidden
        middle = hidden if self.mapping == LRLRL else 0
        places = self.height * self.width
        tables = (places + 1 if self.table_by_place
                  else (places if self.table_per_pixel else 1) * (around + 1))
        pixels = self.images * places
        rows, values = pixels * (2 * self.relation + self.channels), pixels * self.channels
        return dict(
            qkv=rows, w1=first, w1t=first, w2=second, w2t=second, table=tables * hidden,
            offset=compared if self.delta in (HADAMARD, DOT) else 0, w_mid=middle * hidden,
            w_mid_t=middle * hidden, b_mid=middle, scale=self.channels, shift=self.channels,
            y=values, out=values, alpha=pixels * around * self.groups,
            signs=pixels * around * pair_words(self.hidden, self.delta, self.mapping),
            grad=values, grad_qkv=rows, grad_w1t=first, grad_w2t=second,
            grad_table=tables * hidden, moments=2 * hidden, slope=3 * hidden)


class PatchwiseArgs(Arguments):
    """Arguments of the patchwise operator."""

    _fields_ = [*_SHAPE, *_fields(c_int32, "hidden_alone adds"),
                *_fields(c_void_p, "qkv key_scale key_shift w1 w1t b1 w2 w2t b2 scale shift y out "
                                   "h grad grad_qkv grad_h grad_w1t grad_key_scale grad_key_shift "
                                   "grad_w2t grad_b2")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        around = self.footprint ** 2
        first, weights = self.hidden * (1 + around) * self.relation, around * self.groups
        pixels = self.images * self.height * self.width
        rows, values = pixels * (2 * self.relation + self.channels), pixels * self.channels
        keys, hidden = around * self.relation, pixels * self.hidden
        return dict(
            qkv=rows, key_scale=keys, key_shift=keys, w1=first, w1t=first, b1=self.hidden,
            w2=weights * self.hidden, w2t=weights * self.hidden, b2=weights, scale=self.channels,
            shift=self.channels, y=values, out=values, h=hidden,
            grad=hidden if self.hidden_alone else values, grad_qkv=rows, grad_h=hidden,
            grad_w1t=first, grad_key_scale=keys, grad_key_shift=keys,
            grad_w2t=weights * self.hidden, grad_b2=weights)


class LocalArgs(Arguments):
    """Arguments of scalar attention."""

    _fields_ = [*_fields(c_int64, "images height width"),
                *_fields(c_int32, "relation keys groups channels footprint padding element "
                                  "threads"),
                *_fields(c_void_p, "qkv embedding scale shift out grad grad_qkv grad_offset")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        pixels = self.images * self.height * self.width
        rows, values = pixels * (self.relation + self.keys + self.channels), pixels * self.channels
        return dict(
            qkv=rows, embedding=2 * self.footprint * (self.relation // 2), scale=self.channels,
            shift=self.channels, out=values, grad=values, grad_qkv=rows,
            grad_offset=pixels * 2 * self.footprint * self.groups)


class DotsArgs(Arguments):
    """Arguments of the products of queries with the keys around them."""

    _fields_ = [*_fields(c_int64, "images height width"),
                *_fields(c_int32, "relation beside footprint padding threads clique"),
                *_fields(c_void_p, "qkv out grad grad_qkv")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        pixels = self.images * self.height * self.width
        rows = pixels * (2 * self.relation + self.beside)
        products = pixels * self.footprint ** (4 if self.clique else 2)
        return dict(qkv=rows, out=products, grad=products, grad_qkv=rows)


class ElementaryArgs(Arguments):
    """Arguments of an elementary operator."""

    operator: str
    _fields_ = [*_fields(c_int64, "images height width"),
                *_fields(c_int32, "channels groups footprint stride dilation padding element "
                                  "threads"),
                *_fields(c_void_p, "first second grad out grad_first grad_second")]

    def positions(self) -> int:
        """Return the number of output positions; raises UsageError for no window."""
        if min(self.stride, self.dilation) < 1 or self.footprint % 2 == 0:
            raise UsageError("a window must have an odd footprint and a stride and dilation of at "
                             "least 1", seen=f"they are {self.footprint}, {self.stride} and "
                             f"{self.dilation}", hint=HINT)
        rows, columns = ((side - 1) // self.stride + 1 for side in (self.height, self.width))
        return int(rows * columns)


class AggregationArgs(ElementaryArgs):
    """Arguments of aggregation: value and weight."""

    operator = "aggregation"

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        maps = self.images * self.channels
        value, out = maps * self.height * self.width, maps * self.positions()
        weight = self.images * self.groups * self.footprint ** 2 * self.positions()
        return dict(first=value, second=weight, grad=out, out=out, grad_first=value,
                    grad_second=weight)


class SubtractionArgs(ElementaryArgs):
    """Arguments of subtraction: query and key."""

    operator = "subtraction"

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        maps = self.images * self.channels
        given = maps * self.height * self.width
        relation = maps * self.footprint ** 2 * self.positions()
        return dict(first=given, second=given, grad=relation, out=relation, grad_first=given,
                    grad_second=given)


class GemmArgs(Arguments):
    """Arguments of the matrix product with its prologue and epilogue."""

    _fields_ = [*_fields(c_int64, "rows"), *_fields(c_int32, "inner columns threads accumulate"),
                *_fields(c_void_p, "a packed bias out in_scale in_shift in_signs"),
                *_fields(c_int64, "pool_height pool_width"),
                *_fields(c_void_p, "pool_codes out_scale out_signs"),
                *_fields(c_int64, "beside")]
    # Packed for vectors, the columns are rounded up to their width.
    roomy = frozenset({"packed"})

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        left = self.rows
        if self.pool_height:
            pooled = (self.pool_height // 2) * (self.pool_width // 2)
            left = self.rows // max(1, pooled) * self.pool_height * self.pool_width
        return dict(
            a=left * (self.inner + self.beside), packed=self.inner * self.columns,
            bias=self.columns, out=self.rows * (self.columns + self.beside),
            in_scale=self.inner, in_shift=self.inner,
            in_signs=self.rows * sign_words(self.inner), pool_codes=self.rows * self.inner,
            out_scale=self.columns, out_signs=self.rows * sign_words(self.columns))


class PackArgs(Arguments):
    """Arguments of the packing of a product's right side."""

    _fields_ = [*_fields(c_int32, "inner columns"), ("b", c_void_p),
                *_fields(c_int64, "row_stride column_stride"), ("packed", c_void_p)]
    roomy = frozenset({"packed"})

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        return dict(b=self.inner * self.columns, packed=self.inner * self.columns)


class StemArgs(Arguments):
    """Arguments of the first layer."""

    _fields_ = [*_fields(c_int64, "images height width"),
                *_fields(c_int32, "channels pooled threads unused"),
                *_fields(c_void_p, "pixels weight bias out codes grad grad_pixels")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        side = 2 if self.pooled else 1
        pixels = self.images * 3 * self.height * self.width
        rows = self.images * (self.height // side) * (self.width // side) * self.channels
        return dict(pixels=pixels, weight=3 * self.channels, bias=self.channels, out=rows,
                    codes=rows, grad=rows, grad_pixels=pixels)


class LearnedStemArgs(Arguments):
    """Arguments of the first layer in training."""

    _fields_ = [*_fields(c_int64, "images height width"), *_fields(c_int32, "channels threads"),
                *_fields(c_void_p, "pixels weight bias y codes grad grad_weight grad_bias")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        made = self.images * self.channels * (self.height // 2) * (self.width // 2)
        return dict(pixels=self.images * 3 * self.height * self.width, weight=3 * self.channels,
                    bias=self.channels, y=made, codes=made, grad=made,
                    grad_weight=3 * self.channels, grad_bias=self.channels)


class UnpoolArgs(Arguments):
    """Arguments of the undoing of a maximum over 2x2 pixels."""

    _fields_ = [*_fields(c_int64, "images height width"), *_fields(c_int32, "channels threads"),
                *_fields(c_void_p, "grad codes scale out")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        maps = self.images * self.channels
        pooled = maps * (self.height // 2) * (self.width // 2)
        return dict(grad=pooled, codes=pooled, scale=self.channels,
                    out=maps * self.height * self.width)


class HeadArgs(Arguments):
    """Arguments of the mean over a map's pixels."""

    _fields_ = [*_fields(c_int64, "images pixels"), *_fields(c_int32, "channels threads"),
                *_fields(c_void_p, "x scale shift pooled signs grad grad_x")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        pixels = self.images * self.pixels
        return dict(x=pixels * self.channels, scale=self.channels, shift=self.channels,
                    pooled=self.images * self.channels,
                    signs=pixels * sign_words(self.channels), grad=self.images * self.channels,
                    grad_x=pixels * self.channels)


class RepeatArgs(Arguments):
    """Arguments of one map's use as query, key and value."""

    _fields_ = [*_fields(c_int64, "pixels"), *_fields(c_int32, "channels threads"),
                *_fields(c_void_p, "x scale shift out grad grad_x")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        values = self.pixels * self.channels
        return dict(x=values, scale=3 * self.channels, shift=3 * self.channels, out=3 * values,
                    grad=3 * values, grad_x=values)


class NormArgs(Arguments):
    """Arguments of a normalisation by the statistics of the batch, with its ReLU."""

    _fields_ = [*_fields(c_int64, "images pixels"),
                *_fields(c_int32, "channels element threads pool_width"), ("eps", c_double),
                *_fields(c_void_p, "x weight bias stats y grad grad_x grad_weight grad_bias "
                                   "codes")]

    def elements(self) -> dict[str, int]:
        """Return how many elements each tensor must have."""
        maps = self.images * self.channels
        values, made = maps * self.pixels, maps * self.pixels
        if self.pool_width:
            made = maps * (self.pixels // self.pool_width // 2) * (self.pool_width // 2)
        return dict(x=values, weight=self.channels, bias=self.channels, stats=2 * self.channels,
                    y=made, grad=made, grad_x=values, grad_weight=self.channels,
                    grad_bias=self.channels, codes=made if self.pool_width else 0)


# Which struct a kernel of ``api.h`` reads.
STRUCTS: dict[str, type[Arguments]] = {
    **{f"sanrobust_pairwise_{each}": PairwiseArgs for each in ("tuned", "forward", "backward")},
    **{f"sanrobust_moments_{each}": PairwiseArgs for each in ("forward", "backward")},
    **{f"sanrobust_patchwise_{each}": PatchwiseArgs for each in ("tuned", "forward", "backward")},
    "sanrobust_dots_forward": DotsArgs, "sanrobust_dots_backward": DotsArgs,
    **{f"sanrobust_local_{each}": LocalArgs for each in ("tuned", "forward", "backward")},
    **{f"sanrobust_aggregation_{each}": AggregationArgs for each in ("forward", "backward")},
    **{f"sanrobust_subtraction_{each}": SubtractionArgs for each in ("forward", "backward")},
    "sanrobust_pack": PackArgs, "sanrobust_gemm": GemmArgs, "sanrobust_unpool": UnpoolArgs,
    "sanrobust_stem_forward": StemArgs, "sanrobust_stem_backward": StemArgs,
    "sanrobust_head_forward": HeadArgs, "sanrobust_head_backward": HeadArgs,
    **{f"sanrobust_learned_stem_{each}": LearnedStemArgs for each in ("forward", "backward")},
    "sanrobust_norm_forward": NormArgs, "sanrobust_norm_backward": NormArgs,
    "sanrobust_repeat_forward": RepeatArgs, "sanrobust_repeat_backward": RepeatArgs,
}


def require_struct(function: str, args: object) -> None:
    """Raise UsageError when the kernel ``function`` reads another struct."""
    wanted = STRUCTS.get(function)
    if wanted is not None and type(args) is not wanted:
        raise UsageError(f"{function} must be given {wanted.__name__}",
                         seen=f"it is given {type(args).__name__}", hint=HINT)
