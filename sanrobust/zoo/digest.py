"""SHA-256 of values: of the tensors of a network, and of the plain values beside them."""

from __future__ import annotations

import enum
import hashlib
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEEPEST = 6
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
    content, of an absolute path the last part alone; of anything else the type's name and its
    plain attributes.
    """
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any, depth: int = 0) -> Iterator[bytes]:
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
    elif depth >= _DEEPEST:
        yield f"{qualified(type(value))}\0".encode()
    else:
        yield from _composed(value, depth + 1)


def _composed(value: Any, depth: int) -> Iterator[bytes]:
    """Give the parts of what holds other values."""
    if isinstance(value, enum.Enum):
        yield f"{qualified(type(value))}.{value.name}\0".encode()
    elif isinstance(value, Mapping):
        yield from _sorted("table", [[*_parts(key, depth), *_parts(item, depth)]
                                     for key, item in value.items()])
    elif isinstance(value, (set, frozenset)):
        yield from _sorted("set", [list(_parts(item, depth)) for item in value])
    elif isinstance(value, (list, tuple)):
        yield f"{type(value).__name__}\0{len(value)}\0".encode()
        for item in value:
            yield from _parts(item, depth)
    elif isinstance(value, partial):
        yield from _parts((value.func, value.args, value.keywords), depth)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"{qualified(value)}\0".encode()
    elif isinstance(value, nn.Module):  # one in a plain list is no part of the state dict
        yield f"{qualified(type(value))}\0".encode()
        yield from _parts(value.state_dict(), depth)
    else:
        yield f"{qualified(type(value))}\0".encode()
        yield from _parts(_settings(value), depth)


def _settings(value: object) -> dict[str, object]:
    """Return the attributes of an object that count: all of a record, else the plain ones."""
    held = dict(getattr(value, "__dict__", {}))
    if is_dataclass(value) or isinstance(value, (SimpleNamespace, Namespace)):
        return held
    return {name: each for name, each in held.items() if isinstance(each, (str, *_PLAIN))}


def _sorted(kind: str, items: list[list[bytes]]) -> Iterator[bytes]:
    yield f"{kind}\0{len(items)}\0".encode()
    for item in sorted(b"".join(item) for item in items):
        yield item


def qualified(value: Any) -> str:
    """Return the module and the name of a class or function."""
    return f"{value.__module__}.{value.__qualname__}"


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
