"""Every kernel that the backend can ask for: what is compiled in advance, or to be checked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from sanrobust.kernels.cuda import narrow
from sanrobust.kernels.cuda.compiler import Kernel
from sanrobust.kernels.cuda.general import COMPARING
from sanrobust.kernels.cuda.launch import DELTAS, ELEMENTS, FOOTPRINTS, kernel
from sanrobust.kernels.cuda.tuned import DTYPES, PATCHWISE, RELATIONS
from sanrobust.kernels.folding import accumulator

AGGREGATIONS = ("aggregate", "aggregate_value_grad", "aggregate_weight_grad")
SUBTRACTIONS = ("subtract", "subtract_query_grad", "subtract_key_grad")
GENERAL = ("pairwise_logits", "pairwise_softmax", "pairwise_logit_grad", "pairwise_hidden_grad",
           "pairwise_query_grad", "pairwise_key_grad", "patchwise_hidden", "patchwise_weights",
           "patchwise_hidden_grad", "patchwise_query_grad", "patchwise_key_grad")
NARROW = ("forward", "query", "key")


def elementary_kernels() -> Iterator[Kernel]:
    """Yield aggregation and subtraction, with weights of the maps' and the accumulating type."""
    for dtype, element in ELEMENTS.items():
        weights = dict.fromkeys((element, ELEMENTS[accumulator(dtype)]))
        for weight, footprint, name in product(weights, FOOTPRINTS, AGGREGATIONS):
            yield kernel("elementary.cu", name, element, weight, str(footprint))
        for name in SUBTRACTIONS:
            yield kernel("elementary.cu", name, element)


def general_kernels() -> Iterator[Kernel]:
    """Yield fused attention of any shape."""
    for element, name in product(ELEMENTS.values(), GENERAL):
        operator, _, part = name.partition("_")
        compares = operator == "pairwise" and part in COMPARING
        for delta in DELTAS.values() if compares else (None,):
            yield kernel("general.cu", name, element, *([] if delta is None else [delta]))


def tuned_kernels() -> Iterator[Kernel]:
    """Yield fused attention of the SAN shapes, where registers must not spill."""
    for dtype, relation in product(DTYPES, RELATIONS):
        shape = ELEMENTS[dtype], str(relation)
        for delta in DELTAS.values():
            yield kernel("pairwise_forward.cu", "pairwise_forward", *shape, delta)
            for key in ("false", "true"):
                yield kernel("pairwise_backward.cu", "pairwise_backward", *shape, delta, key)
        for name, file in PATCHWISE.items():
            yield kernel(file, name, *shape)


def narrow_kernels() -> Iterator[Kernel]:
    """Yield fused attention of a SAN's first stage."""
    for dtype, operator, name in product(narrow.DTYPES, ("pairwise", "patchwise"), NARROW):
        yield narrow.narrow_kernel(operator, name, ELEMENTS[dtype])


def all_kernels() -> tuple[Kernel, ...]:
    """Return every kernel."""
    return (*elementary_kernels(), *general_kernels(), *narrow_kernels(), *tuned_kernels())
