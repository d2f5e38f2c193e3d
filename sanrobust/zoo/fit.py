"""Whether weights fit a network, and filling it with them.

Shapes in messages are tensor shapes as PyTorch prints them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sanrobust.errors import CheckpointError, UnknownNameError, first_line, shortened
from sanrobust.zoo.build import parameter_shapes
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.families.catalog import networks
from sanrobust.zoo.forms import imagenet_config, small_config
from sanrobust.zoo.names import canonical, options, quoted
from sanrobust.zoo.wrapping import BATCH_COUNTER, EXTRA_STATE, aligned

Shapes = Mapping[str, tuple[int, ...]]

# The head of each form takes so many times its width: the tag of the model, the form, the times.
_FORMS = (("", imagenet_config, 32), (".untrained-small", small_config, 4))


def load_strict(model: nn.Module, state: Mapping[str, Any], *, name: str, source: str,
                suggestion: str = "type --model {model}") -> None:
    """Copy ``state`` into ``model`` if names, shapes and kinds of number agree and all are finite.

    Only batch normalisation's ``num_batches_tracked`` may be absent, as in files older than it,
    and names may begin with what a trainer put before all of them.

    Args:
        model: the network to fill.
        state: tensors as `read_state_dict` returns them.
        name: the model's name, for messages.
        source: where the tensors came from, for messages.
        suggestion: what to do when another known model fits; its name stands for ``{model}``,
            its architecture for ``{arch}``.

    Raises CheckpointError saying what differs and, where another known model fits, which.
    """
    own = model.state_dict()
    state = aligned(state, own)
    require_fit(shapes(own), state, name=name, source=source, suggestion=suggestion)
    for key, value in state.items():
        _require_numbers(key, own[key], value, source)
    counters = {key: value for key, value in own.items() if key.endswith(BATCH_COUNTER)}
    try:
        model.load_state_dict({**counters, **state}, strict=True)
    # A module that reads extra state raises what it likes.
    except Exception as error:
        raise CheckpointError(f"the weights must fit {name}",
                              seen=f"reading {source} it stopped with: {first_line(error)}",
                              hint=f"check that the file holds weights of {name}") from error


def require_fit(expected: Shapes, state: Mapping[str, Any], *, name: str, source: str,
                suggestion: str = "type --model {model}") -> None:
    """Raise CheckpointError unless the names and shapes of ``state`` are the ``expected`` ones."""
    difference = _difference(expected, state)
    if difference is None:
        return
    classes = head_classes(expected, state)
    if classes is not None:
        raise CheckpointError(
            f"the weights must fit {name}",
            seen=f"{source} has {classes} classes where the model has "
                 f"{_head_size(expected, difference)}",
            hint="give weights with the model's number of classes, or name the model they belong "
                 "to")
    other = fitting(state)
    hint = (f"it fits {other}: {_suggested(suggestion, other)}" if other
            else f"check that the file holds weights of {name}")
    raise CheckpointError(f"the weights must fit {name}",
                          seen=f"in {source} {difference.sentence(expected, state)}", hint=hint)


def fits(expected: Shapes, state: Mapping[str, Any]) -> bool:
    """Return whether the names and shapes of ``state`` are the ``expected`` ones."""
    return _difference(expected, state) is None


def head_classes(expected: Shapes, state: Mapping[str, Any]) -> int | None:
    """Return the number of classes of ``state`` when nothing but the heads' length differs.

    A network may have several heads, all of one length. None when the tensors agree with
    ``expected`` or differ in any other way.
    """
    difference = _difference(expected, state)
    if difference is None or difference.missing or difference.unexpected:
        return None
    found = shapes(state)
    lengths = {(expected[key][:1], found[key][:1]) for key in difference.reshaped}
    same_rest = all(found[key][1:] == expected[key][1:] and found[key] and expected[key]
                    for key in difference.reshaped)
    if len(lengths) != 1 or not same_rest:
        return None
    (_, (classes,)), = lengths
    return classes


def fitting(state: Mapping[str, Any]) -> str | None:
    """Return the name of the zoo's model whose parameters have the names and shapes of ``state``.

    Of its options only the width is found out. A small form answers as ``ARCH.untrained-small``.
    None when no model fits.
    """
    heads = [shape for key, shape in shapes(state).items() if key.endswith("fc.weight")]
    if not heads or len(heads[0]) != 2:
        return None
    for arch in networks():
        for name, form in _models(arch, heads[0][1]):
            expected = parameter_shapes(form)
            named = aligned(state, expected)
            if _difference(expected, named) is None or head_classes(expected, named) is not None:
                return name
    return None


def _models(arch: str, channels: int) -> Iterator[tuple[str, Architecture]]:
    """Yield the forms of ``arch`` whose heads can take ``channels``, with their names."""
    has_width = any(option.name == "width" for option in options(arch))
    for tag, form, times in _FORMS:
        try:
            name = canonical(f"{arch}(width={channels // times})") if has_width else arch
            config = form(name)
        except UnknownNameError:
            continue  # no network of this family has such a head
        yield f"{name}{tag}", config


def class_count(state: Mapping[str, Any]) -> int | None:
    """Return the length of the head ``fc.weight`` (classes, channels); None where it is none."""
    head = state.get("fc.weight")
    if not isinstance(head, Tensor) or head.ndim != 2 or head.shape[0] < 1:
        return None
    return int(head.shape[0])


def shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name; of extra state, which may be anything, none."""
    return {name: () if name.endswith(EXTRA_STATE) else tuple(value.shape)
            for name, value in state.items()}


@dataclass(frozen=True)
class _Difference:
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def sentence(self, expected: Shapes, state: Mapping[str, Any]) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} of {len(expected)} names are missing "
                         f"(first {shortened(self.missing[0])})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} names are unexpected "
                         f"(first {shortened(self.unexpected[0])})")
        if self.reshaped:
            first = self.reshaped[0]
            parts.append(f"{len(self.reshaped)} have another shape (first {shortened(first)}: "
                         f"{tuple(state[first].shape)} where the model has {expected[first]})")
        return ", ".join(parts)


def _difference(expected: Shapes, state: Mapping[str, Any]) -> _Difference | None:
    found = shapes(state)
    missing = tuple(key for key in expected
                    if key not in found and not key.endswith(BATCH_COUNTER))
    unexpected = tuple(key for key in found if key not in expected)
    reshaped = tuple(key for key in expected if key in found and expected[key] != found[key])
    if not (missing or unexpected or reshaped):
        return None
    return _Difference(missing, unexpected, reshaped)


def _suggested(suggestion: str, model: str) -> str:
    return suggestion.format(model=quoted(model), arch=quoted(model.partition(".")[0]))


def _head_size(expected: Shapes, difference: _Difference) -> int:
    return expected[difference.reshaped[0]][0]


def _require_numbers(key: str, own: Any, value: Any, source: str) -> None:
    """Raise CheckpointError unless the type of the network's ``own`` holds ``value``.

    Integers, truth values and complex numbers are no weights of another precision. A batch
    counter, which nothing reads in eval mode, may have been averaged.
    """
    where = f"{shortened(key)} in {source}"
    if not (isinstance(own, Tensor) and isinstance(value, Tensor)):
        return
    if not _converts(value, own) and not key.endswith(BATCH_COUNTER):
        raise CheckpointError("weights must be of the kind of number that the model computes with",
                              seen=f"{where} is of type {_dtype(value)} where the model has "
                                   f"{_dtype(own)}",
                              hint="give the weights before they were quantised or converted")
    if _kind(own) in ("floating", "complex"):
        lost = _lost(value, value.to(own.dtype))
        if lost is not None:
            raise CheckpointError("weights must be finite numbers that the model's type holds",
                                  seen=f"{where} holds {lost}",
                                  hint="use an earlier checkpoint, from before training diverged")


def _converts(value: Tensor, own: Tensor) -> bool:
    """Return whether ``value`` is of the same kind of number as ``own``.

    Floating-point numbers of eight bits or fewer mean nothing without the factors by which they
    were scaled.
    """
    small = value.is_floating_point() and value.dtype.itemsize < 2
    return _kind(own) == _kind(value) and (not small or value.dtype == own.dtype)


def _lost(value: Tensor, converted: Tensor) -> str | None:
    """Say what of the values was no number, or is none any more; None where nothing was lost."""
    if not bool(torch.isfinite(converted).all()):
        overflows = bool(torch.isfinite(value).all())
        return f"values too large for {_dtype(converted)}" if overflows else "NaN or infinity"
    vanished = value.dtype != converted.dtype and not bool(converted.any()) and bool(value.any())
    return f"values that are all too small for {_dtype(converted)}" if vanished else None


def _kind(value: Tensor) -> str:
    if value.is_complex():
        return "complex"
    if value.is_floating_point():
        return "floating"
    return "truth" if value.dtype == torch.bool else "integer"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
