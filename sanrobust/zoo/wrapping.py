"""What trainers wrap around a network's weights: tables, averages, and prefixes of names.

Prefixes are cut at the beginning of names alone, and only where every name has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanrobust.errors import CheckpointError

EXTRA_STATE = "_extra_state"
BATCH_COUNTER = "num_batches_tracked"

_RAW = ("state_dict", "model_state_dict", "model", "network", "net", "params", "module",
        "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema",
             "ema_model", "params_ema", "averaged_model", "swa_model")
_PREFIXES = ("module.", "_orig_mod.")
_AVERAGE_COUNTER = "n_averaged"
_DEEPEST = 5


@dataclass(frozen=True)
class Weights:
    """One set of weights of a checkpoint.

    Attributes:
        state: tensors by name; what ends in ``_extra_state`` may be any plain value.
        key: where in the file it lies, tables joined by dots; empty for the whole file.
        averaged: whether it is an average over training steps.
        others: keys of the other sets in the file.
    """

    state: dict[str, Any]
    key: str = ""
    averaged: bool = False
    others: tuple[str, ...] = ()

    def remark(self, source: str) -> str | None:
        """Return a sentence on which weights of ``source`` were taken; None where that is clear."""
        kind = "averaged" if self.averaged else "raw"
        if not self.others:
            return None
        way = "without" if self.averaged else "with"
        return (f"{source} holds several weights: took the {kind} ones ({self.key}), not "
                f"{', '.join(self.others)}; {way} --use-ema it is the other way round")


def chosen(loaded: object, path: Path, *, use_ema: bool) -> Weights:
    """Return the weights in what a checkpoint holds, the raw ones unless ``use_ema`` is set.

    Raises CheckpointError where there are none, or no averaged ones that were asked for.
    """
    found = [replace(each, state=_checked(each.state, path)) for each in _found(loaded)]
    if not found:
        raise CheckpointError("a checkpoint must hold named tensors",
                              seen=f"{path} holds {_described(loaded)}",
                              hint="save the model's state_dict() and give that file")
    if use_ema and not any(each.averaged for each in found):
        held = f" ({', '.join(map(str, loaded))})"[:200] if isinstance(loaded, Mapping) \
            and found[0].key else ""
        raise CheckpointError("a checkpoint for --use-ema must hold averaged weights",
                              seen=f"{path} has none{held}", hint="leave out --use-ema")
    wanted = [each for each in found if each.averaged is use_ema] or found
    first = replace(wanted[0], state=_without_prefixes(wanted[0].state))
    kinds = {each.averaged for each in found}
    # Several raw tables are several spellings of one set, or say nothing of an average.
    others = tuple(each.key for each in found if each.averaged is not first.averaged)
    return replace(first, others=others if len(kinds) == 2 else ())


def aligned(state: Mapping[str, Any], expected: Collection[str]) -> dict[str, Any]:
    """Return ``state`` with as many leading parts of its names cut as makes all names expected.

    Trainers hold a network as a part (``model.``, ``net.``, ``module._orig_mod.``). Where no cut
    makes every name fit, the names stay as they are.
    """
    candidate = dict(state)
    while not _fits(candidate, expected):
        parts = {name.partition(".")[0] for name in candidate if "." in name}
        if len(parts) != 1 or not all("." in name for name in candidate):
            return dict(state)
        candidate = _cut(candidate, f"{parts.pop()}.")
    return candidate


def _fits(state: Collection[str], expected: Collection[str]) -> bool:
    return all(name in expected for name in state) and all(
        name in state or name.endswith(BATCH_COUNTER) for name in expected)


def _found(loaded: object, key: str = "", averaged: bool = False, depth: int = 0
           ) -> Iterator[Weights]:
    """Yield each set of weights in nested tables, raw ones first."""
    if not isinstance(loaded, Mapping) or depth > _DEEPEST:
        return
    inner = [name for name in (*_RAW, *_AVERAGED) if isinstance(loaded.get(name), Mapping)]
    for name in inner:
        yield from _found(loaded[name], f"{key}.{name}".lstrip("."),
                          averaged or name in _AVERAGED, depth + 1)
    if not inner and any(isinstance(value, Tensor) for value in loaded.values()):
        yield from _split(Weights(dict(loaded), key, averaged))


def _split(weights: Weights) -> Iterator[Weights]:
    """Separate an average that lies beside the raw weights under the same table's prefixes."""
    state = weights.state
    counted = _AVERAGE_COUNTER in state and all(
        name.startswith("module.") for name in state if name != _AVERAGE_COUNTER)
    if counted:
        rest = {name: value for name, value in state.items() if name != _AVERAGE_COUNTER}
        yield replace(weights, state=rest, averaged=True)
        return
    for prefix in (f"{name}." for name in _AVERAGED):
        part = {name: value for name, value in state.items()
                if isinstance(name, str) and name.startswith(prefix)}
        if part and len(part) < len(state):
            rest = {name: value for name, value in state.items() if name not in part}
            yield replace(weights, state=rest, key=weights.key or "the names without a prefix")
            yield from _split(replace(weights, state=_cut(part, prefix), averaged=True,
                                      key=f"{weights.key}.{prefix[:-1]}".lstrip(".")))
            return
    yield weights


def _checked(state: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    largest = path.stat().st_size
    for name, value in state.items():
        if isinstance(name, str) and name.endswith(EXTRA_STATE):
            continue
        if not (isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value)):
            raise CheckpointError("every value of a checkpoint's state must be a plain tensor",
                                  seen=f"{name!r} in {path} is {_described(value)}",
                                  hint="save the model's state_dict() and give that file")
        if value.numel() * value.element_size() > largest:
            raise CheckpointError("a tensor of a checkpoint must not be larger than its file",
                                  seen=f"{name!r} in {path} repeats few values to shape "
                                       f"{tuple(value.shape)}",
                                  hint="check where the file came from")
    return {name: value.detach() if isinstance(value, Tensor) else value
            for name, value in state.items()}


def _is_plain(value: Tensor) -> bool:
    return (value.layout is torch.strided and not value.is_quantized and not value.is_nested
            and value.device.type == "cpu")


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table without tensors" if value else "an empty table"
    if isinstance(value, Tensor):
        kind = "nested" if value.is_nested else "quantised" if value.is_quantized else "plain"
        return f"a tensor of layout {value.layout} on {value.device} ({kind})"
    return f"a value of type {type(value).__name__}"


def _without_prefixes(state: dict[str, Any]) -> dict[str, Any]:
    """Cut what DataParallel, DDP and torch.compile put before every name, in any order."""
    while prefix := next((each for each in _PREFIXES
                          if all(name.startswith(each) for name in state)), None):
        state = _cut(state, prefix)
    return state


def _cut(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items()}
