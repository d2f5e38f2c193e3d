"""What trainers wrap around a network's weights: tables, averages, and prefixes of names.

Prefixes are cut at the beginning of names alone, and only where every name has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sanrobust.errors import CheckpointError, shortened
from sanrobust.zoo.pickles import Opaque
from sanrobust.zoo.stored import StoredTensor

EXTRA_STATE = "_extra_state"
BATCH_COUNTER = "num_batches_tracked"

_RAW = ("state_dict", "model_state_dict", "model", "network", "net", "params", "module",
        "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema",
             "ema_model", "params_ema", "averaged_model", "swa_model")
_PREFIXES = ("module.", "_orig_mod.")
_AVERAGE_COUNTER = "n_averaged"
_DEEPEST = 5
_LARGEST_EXTRA = 100_000
_MOST_PREFIXES = 10  # more than any trainer puts before a name
_MOST_NAMES = 30_000
_LONGEST_NAME = 500
_WHENCE = "check where the file came from"


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
    found = [part for table in _found(loaded)
             for part in _split(replace(table, state=_checked(table.state, path)))]
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
    first = replace(wanted[0], state={name: _value(each) for name, each in
                                      _without_prefixes(wanted[0].state).items()})
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
    for _ in range(_MOST_PREFIXES):
        if _fits(candidate, expected):
            return candidate
        parts = {name.partition(".")[0] for name in candidate if "." in name}
        if len(parts) != 1 or not all("." in name for name in candidate):
            return dict(state)
        candidate = _cut(candidate, f"{parts.pop()}.")
    return candidate if _fits(candidate, expected) else dict(state)


def _fits(state: Collection[str], expected: Collection[str]) -> bool:
    return all(name in expected for name in state) and all(
        name in state or name.endswith(BATCH_COUNTER) for name in expected)


def _quoted(name: object) -> str:
    known = isinstance(name, (str, bytes, int, float, type(None)))
    return shortened(repr(name) if known else _described(name))


def _found(loaded: object) -> Iterator[Weights]:
    """Yield each table of weights in nested tables, raw ones first."""
    seen: set[tuple[int, bool]] = set()  # a table may lie in itself

    def within(table: object, key: str, averaged: bool, depth: int) -> Iterator[Weights]:
        if not isinstance(table, Mapping) or depth > _DEEPEST or (id(table), averaged) in seen:
            return
        seen.add((id(table), averaged))
        inner = [name for name in (*_RAW, *_AVERAGED) if isinstance(table.get(name), Mapping)]
        for name in inner:
            yield from within(table[name], f"{key}.{name}".lstrip("."),
                              averaged or name in _AVERAGED, depth + 1)
        if not inner and any(isinstance(value, StoredTensor) for value in table.values()):
            yield Weights(dict(table), key, averaged)
    return within(loaded, "", False, 0)


def _split(weights: Weights, depth: int = 0) -> Iterator[Weights]:
    """Separate an average that lies beside the raw weights under the same table's prefixes."""
    state = weights.state
    counted = _AVERAGE_COUNTER in state and all(
        name.startswith("module.") for name in state if name != _AVERAGE_COUNTER)
    if counted:
        rest = {name: value for name, value in state.items() if name != _AVERAGE_COUNTER}
        yield replace(weights, state=rest, averaged=True)
        return
    for prefix in (f"{name}." for name in _AVERAGED if depth <= _DEEPEST):
        part = {name: value for name, value in state.items()
                if name.startswith(prefix)}
        if part and len(part) < len(state):
            rest = {name: value for name, value in state.items() if name not in part}
            yield replace(weights, state=rest, key=weights.key or "the names without a prefix")
            yield from _split(replace(weights, state=_cut(part, prefix), averaged=True,
                                      key=f"{weights.key}.{prefix[:-1]}".lstrip(".")), depth + 1)
            return
    yield weights


def _checked(state: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    if len(state) > _MOST_NAMES:
        raise CheckpointError("a checkpoint must be of one network",
                              seen=f"{path} holds {len(state)} names", hint=_WHENCE)
    largest = path.stat().st_size
    for name, value in state.items():
        if not isinstance(name, str) or not _is_value(name, value):
            raise CheckpointError("every value of a checkpoint's state must be a plain tensor",
                                  seen=f"{_quoted(name)} in {path} is {_described(value)}",
                                  hint="save the model's state_dict() and give that file")
        if len(name) > _LONGEST_NAME:
            raise CheckpointError(f"a name must have at most {_LONGEST_NAME} characters",
                                  seen=f"{_quoted(name)} in {path} has {len(name)}", hint=_WHENCE)
        if isinstance(value, StoredTensor) and value.nbytes > largest:
            raise CheckpointError("a tensor of a checkpoint must not be larger than its file",
                                  seen=f"{_quoted(name)} in {path} repeats few values to shape "
                                       f"{value.shape}", hint=_WHENCE)
    return dict(state)


def _is_value(name: str, value: object) -> bool:
    if name.endswith(EXTRA_STATE):
        return _is_plain(value)
    return isinstance(value, StoredTensor) and not value.kind


def _is_plain(state: object) -> bool:
    """Return whether a module's extra state is of values that need no code, and not too many."""
    waiting, met = [state], 0
    while waiting:
        value, met = waiting.pop(), met + 1
        if met > _LARGEST_EXTRA or isinstance(value, Opaque) or (
                isinstance(value, StoredTensor) and value.kind):
            return False
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += value
    return True


def _value(value: Any) -> Any:
    """Return a value with the tensors in it read."""
    if isinstance(value, StoredTensor):
        return value.read()
    if isinstance(value, Mapping):
        return {key: _value(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_value, value))
    return value


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table without tensors" if value else "an empty table"
    if isinstance(value, StoredTensor):
        return f"a {value.kind} tensor" if value.kind else "a tensor"
    kind = value.kind if isinstance(value, Opaque) else type(value).__name__
    return f"a value of type {kind}"


def _without_prefixes(state: dict[str, Any]) -> dict[str, Any]:
    """Cut what DataParallel, DDP and torch.compile put before every name, in any order."""
    while prefix := next((each for each in _PREFIXES
                          if all(name.startswith(each) for name in state)), None):
        state = _cut(state, prefix)
    return state


def _cut(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items()}
