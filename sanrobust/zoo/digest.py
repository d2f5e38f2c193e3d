"""SHA-256 of values: of the tensors of a network, and of the plain values beside them."""

from __future__ import annotations

import enum
import hashlib
import os
import sys
import sysconfig
import types
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LIBRARIES = ("torch", "torchvision", "timm", "sanrobust")
# What every network has: its weights and children count elsewhere, its hooks as functions.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module())) | {"training"}
_INSTALLED = ("site-packages", "dist-packages")
_NAMELESS = "<lambda>"
_DEEPEST = 8
_FORMER = {  # digests of earlier records hold these names
    "sanrobust.design.AttentionConfig": "sanrobust.design.Design",
    "sanrobust.zoo.families.resnet.ResNetConfig": "sanrobust.zoo.entry.ResNetConfig",
    "sanrobust.zoo.families.san.SanConfig": "sanrobust.zoo.entry.SanConfig",
    "sanrobust.zoo.families.sasa.SasaConfig": "sanrobust.zoo.entry.SasaConfig",
}
_PLAIN = (bool, int, float, complex, bytes, torch.dtype, torch.device, type(None))


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes, whatever file the tensors came in.

    What is no dense tensor (quantised or sparse ones, a module's extra state) counts by its
    content as well. Raises RuntimeError or ValueError for a tensor without values.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}\0".encode())
        for part in _parts(state[name]):
            digest.update(part)
    return digest.hexdigest()


def value_digest(value: object) -> str:
    """Return the SHA-256 of a value as far as it can be followed.

    Numbers, texts, tensors, arrays, and tables, lists and objects of these count by their
    content, of an absolute path the last part alone. A function counts by its name, what it
    encloses and its defaults, one without a name by its instructions, and a method by its object
    too. Of an object of an installed library count the type's name and its plain attributes.
    """
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any, above: tuple[int, ...] = ()) -> Iterator[bytes]:
    """Give the parts of a value that lies within the objects of these ids."""
    if isinstance(value, Tensor):
        yield from _tensor(value)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype.str}\0{value.shape}\0".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, str):
        text = os.path.basename(value) if os.path.isabs(value) else value
        yield f"str\0{text}\0".encode("utf-8", "surrogatepass")
    elif isinstance(value, (*_PLAIN, np.generic)):
        yield f"{type(value).__name__}\0{value!r}\0".encode()
    elif len(above) >= _DEEPEST or id(value) in above:
        yield f"{qualified(type(value))}\0".encode()
    elif isinstance(value, (Mapping, set, frozenset, list, tuple)):
        yield from _collection(value, (*above, id(value)))
    else:
        for part in _object(value):
            yield from [part] if isinstance(part, bytes) else _parts(*part, (*above, id(value)))


def _collection(value: Any, above: tuple[int, ...]) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        yield from _sorted("table", [[*_parts(key, above), *_parts(item, above)]
                                     for key, item in value.items()])
    elif isinstance(value, (set, frozenset)):
        yield from _sorted("set", [list(_parts(item, above)) for item in value])
    else:
        yield f"{type(value).__name__}\0{len(value)}\0".encode()
        for item in value:
            yield from _parts(item, above)


def _object(value: Any) -> Iterator[bytes | tuple[object]]:
    """Give what a value is called and, each in a tuple of its own, the values that it holds."""
    if isinstance(value, enum.Enum):
        yield f"{qualified(type(value))}.{value.name}\0".encode()
    elif isinstance(value, partial):
        yield ((value.func, value.args, value.keywords),)
    elif isinstance(value, types.MethodType):
        yield ((value.__func__, value.__self__),)
    elif isinstance(value, types.FunctionType):
        nameless = value.__name__ == _NAMELESS  # wherever it was written
        yield f"{value.__module__ if nameless else qualified(value)}\0".encode()
        yield (_enclosed(value),)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"{qualified(value)}\0".encode()
    else:
        yield f"{qualified(type(value))}\0".encode()
        if isinstance(value, nn.Module):  # one in a plain list is no part of the state dict
            yield (value.state_dict(),)
        yield (_settings(value),)


def _enclosed(function: types.FunctionType) -> tuple[object, ...]:
    """Return what two functions of one name and one file may differ in."""
    cells: list[object] = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # a name that has no value yet
            cells.append(None)
    # Several functions without a name may stand on one line of source.
    body = instructions(function.__code__) if function.__name__ == _NAMELESS else None
    return cells, function.__defaults__, function.__kwdefaults__, body


def instructions(code: types.CodeType) -> tuple[object, ...]:
    """Return everything of a compiled function that decides what it does, without its place."""
    constants = tuple(instructions(each) if isinstance(each, types.CodeType) else each
                      for each in code.co_consts)
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars,
            code.co_cellvars, code.co_flags)


def _settings(value: object) -> dict[str, object]:
    """Return the attributes of an object that count: those of a library's, the plain ones alone."""
    held = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                held[name] = getattr(value, name)
    if isinstance(value, nn.Module):
        return {name: each for name, each in held.items() if name not in MODULE_ATTRIBUTES}
    record = is_dataclass(value) or isinstance(value, (types.SimpleNamespace, Namespace))
    if record or not is_installed(type(value).__module__):
        return held
    return {name: each for name, each in held.items() if isinstance(each, (str, *_PLAIN))}


def is_installed(name: str) -> bool:
    """Return whether a module belongs to an installed library or to Python itself."""
    top = name.partition(".")[0]
    if top in LIBRARIES or top in sys.stdlib_module_names and top != "__main__":
        return True
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None:
        return False
    return (any(part in _INSTALLED for part in Path(path).parts)
            or Path(path).is_relative_to(sysconfig.get_path("stdlib")))


def _sorted(kind: str, items: list[list[bytes]]) -> Iterator[bytes]:
    yield f"{kind}\0{len(items)}\0".encode()
    for item in sorted(b"".join(item) for item in items):
        yield item


def qualified(value: Any) -> str:
    """Return the module and the name of a class or function; of ours, the first it ever had."""
    name = f"{value.__module__}.{value.__qualname__}"
    return _FORMER.get(name, name)


def _tensor(value: Tensor) -> Iterator[bytes]:
    value = value.detach().cpu()
    dtype = str(value.dtype).removeprefix("torch.")
    yield f"{dtype}\0{tuple(value.shape)}\0".encode()
    if value.is_quantized:
        yield from _quantisation(value)
        value = value.int_repr()
    elif value.layout is not torch.strided:
        value = value.to_dense()
    value = value.resolve_conj().resolve_neg().contiguous()
    yield value.reshape(-1).view(torch.uint8).numpy().tobytes()


def _quantisation(value: Tensor) -> Iterator[bytes]:
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        yield f"{value.q_scale()}\0{value.q_zero_point()}\0".encode()
    else:
        yield f"{value.q_per_channel_axis()}\0".encode()
        yield from _tensor(value.q_per_channel_scales())
        yield from _tensor(value.q_per_channel_zero_points())
