"""Reading weights that a stranger made, without ever running what the file says.

Shapes in messages are tensor shapes as PyTorch prints them. A file is judged by its content, never
by its name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.dtypes import Float32DType, Float64DType, Int32DType, Int64DType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sanrobust.errors import CheckpointError
from sanrobust.files import atomic_write
from sanrobust.zoo.build import parameter_shapes
from sanrobust.zoo.download import looks_like_html, looks_like_text
from sanrobust.zoo.forms import ARCHITECTURES, imagenet_form, small_form

METADATA_KEY = "sanrobust"

_HEAD_BYTES = 4096
_ZIP_MAGIC = b"PK"
_PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05]")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net",
             "state_dict_ema", "model_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.")
_BATCH_COUNTER = "num_batches_tracked"
_UNSAFE_NAME = re.compile(r"GLOBAL (\S+)")

Shapes = Mapping[str, tuple[int, ...]]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, on the CPU, with no code of the file run.

    Reads safetensors, PyTorch zip files and PyTorch's legacy pickles. The tensors may sit under a
    usual key of a training checkpoint (``state_dict``, ``model``, ...); one leading ``module.``
    or ``_orig_mod.`` is dropped when every name has it. Raises CheckpointError for anything else.
    """
    kind = _content(path)
    loaded = _read_safetensors(path) if kind == "safetensors" else _read_torch(path, kind)
    return _without_prefix(_unwrapped(loaded, path))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text metadata of a safetensors file; empty for every other kind of file."""
    if _content(path) != "safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise _damaged(path, "its safetensors header does not read") from error


def read_facts(path: Path) -> dict[str, object] | None:
    """Return what our own training wrote about the model; None when the file says nothing."""
    text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        return None
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"its {METADATA_KEY!r} metadata is not JSON") from error
    if not isinstance(facts, dict):
        raise _damaged(path, f"its {METADATA_KEY!r} metadata is not a table")
    return facts


def save_safetensors(state: Mapping[str, Tensor], path: Path,
                     metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and text metadata to ``path``, whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    content = save(tensors, dict(metadata) if metadata else None)
    with atomic_write(path) as stream:
        stream.write(content)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes, whatever file the tensors came in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        dtype = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_strict(model: nn.Module, state: Mapping[str, Tensor], *, name: str, source: str,
                suggestion: str = "type --model {model}") -> None:
    """Copy ``state`` into ``model`` if every name and shape agrees and all values are finite.

    Only batch normalisation's ``num_batches_tracked`` may be absent, as in files older than it.

    Args:
        model: the network to fill.
        state: tensors as `read_state_dict` returns them.
        name: the model's name, for messages.
        source: where the tensors came from, for messages.
        suggestion: what to do when another known model fits; its name stands for ``{model}``,
            its architecture for ``{arch}``.

    Raises CheckpointError saying what differs and, where another known model fits, which.
    """
    expected = _shapes(model.state_dict())
    require_fit(expected, state, name=name, source=source, suggestion=suggestion)
    _require_finite(state, source)
    counters = {key: value for key, value in model.state_dict().items()
                if key.endswith(_BATCH_COUNTER)}
    model.load_state_dict({**counters, **state}, strict=True)


def require_fit(expected: Shapes, state: Mapping[str, Tensor], *, name: str, source: str,
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
            hint=f"give --num-classes {classes}, or name the model they belong to with --model")
    other = fitting(state)
    hint = (f"it fits {other}: {_suggested(suggestion, other)}" if other
            else "it fits none of the zoo's models, so check where the file came from")
    raise CheckpointError(f"the weights must fit {name}",
                          seen=f"in {source} {difference.sentence(expected, state)}", hint=hint)


def head_classes(expected: Shapes, state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of ``state`` when nothing but the last layer's length differs.

    None when the tensors agree with ``expected`` or differ in any other way.
    """
    difference = _difference(expected, state)
    if difference is None or difference.missing or difference.unexpected:
        return None
    layers = {key.rpartition(".")[0] for key in difference.reshaped}
    lengths = {tuple(state[key].shape[:1]) for key in difference.reshaped}
    same_rest = all(tuple(state[key].shape[1:]) == expected[key][1:] for key in difference.reshaped)
    if len(layers) != 1 or len(lengths) != 1 or () in lengths or not same_rest:
        return None
    return int(lengths.pop()[0])


def fitting(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the zoo's model whose parameters have the names and shapes of ``state``.

    A small form answers as ``ARCH.untrained-small``. None when no model fits.
    """
    head = state.get("fc.weight")
    if head is None or head.ndim != 2 or head.shape[0] < 1:
        return None
    for arch in ARCHITECTURES:
        forms = {arch: imagenet_form(arch), f"{arch}.untrained-small": small_form(arch, 10)}
        for name, form in forms.items():
            sized = replace(form, num_classes=int(head.shape[0]))
            if _difference(parameter_shapes(sized), state) is None:
                return name
    return None


@dataclass(frozen=True)
class _Difference:
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def sentence(self, expected: Shapes, state: Mapping[str, Tensor]) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} of {len(expected)} names are missing "
                         f"(first {self.missing[0]})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} names are unexpected "
                         f"(first {self.unexpected[0]})")
        if self.reshaped:
            first = self.reshaped[0]
            parts.append(f"{len(self.reshaped)} have another shape (first {first}: "
                         f"{tuple(state[first].shape)} where the model has {expected[first]})")
        return ", ".join(parts)


def _difference(expected: Shapes, state: Mapping[str, Tensor]) -> _Difference | None:
    found = _shapes(state)
    missing = tuple(key for key in expected
                    if key not in found and not key.endswith(_BATCH_COUNTER))
    unexpected = tuple(key for key in found
                       if key not in expected and not key.endswith(_BATCH_COUNTER))
    reshaped = tuple(key for key in expected if key in found and expected[key] != found[key])
    if not (missing or unexpected or reshaped):
        return None
    return _Difference(missing, unexpected, reshaped)


def _suggested(suggestion: str, model: str) -> str:
    return suggestion.format(model=model, arch=model.partition(".")[0])


def _head_size(expected: Shapes, difference: _Difference) -> int:
    return expected[difference.reshaped[0]][0]


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _require_finite(state: Mapping[str, Tensor], source: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError("weights must be finite numbers",
                                  seen=f"{name} in {source} holds NaN or infinity",
                                  hint="use an earlier checkpoint, from before training diverged")


def _content(path: Path) -> str:
    """Name what a file holds: safetensors, zip or pickle; anything else raises."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError("the checkpoint must be a readable file",
                              seen=f"opening {path} failed ({error.strerror or error})",
                              hint="check the path") from error
    if not head:
        raise _damaged(path, "it is empty")
    if _is_safetensors(head, size):
        return "safetensors"
    if head.startswith(_ZIP_MAGIC):
        return "zip"
    if _PICKLE_MAGIC.match(head):
        return "pickle"
    raise CheckpointError("a checkpoint must hold weights",
                          seen=f"{path} {_stranger(head)}",
                          hint="download the weights again in a browser and give that file")


def _is_safetensors(head: bytes, size: int) -> bool:
    # Eight bytes of header length, then the JSON header (padded with blanks, never before it).
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and (length <= size or length < 1 << 27)


def _stranger(head: bytes) -> str:
    if looks_like_html(head):
        return "is a web page"
    if looks_like_text(head):
        return "is a text file"
    return "is neither safetensors nor a PyTorch file"


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError("the checkpoint must be whole", seen=f"{path} is damaged ({why})",
                           hint="download or copy it again")


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "its safetensors content does not read") from error


def _read_torch(path: Path, kind: str) -> object:
    if kind == "zip":
        _require_torch_zip(path)
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickles of other protocols, refused just below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _UNSAFE_NAME.search(str(error))
        if wanted is not None:
            raise _refused(path, wanted[1].rstrip(".")) from error
        raise _damaged(path, "it holds what torch.save never writes") from error
    except MemoryError as error:
        raise _damaged(path, "it asks for more memory than there is") from error
    # A damaged pickle makes the reader stumble in any of these ways, none of them our defect.
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError,
            TypeError, AssertionError, OverflowError) as error:
        raise _damaged(path, "it ends early or its content does not read") from error


def _require_torch_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, "its zip directory does not read") from error
    names = {member.filename.partition("/")[2] for member in members}
    if "data.pkl" not in names or "constants.pkl" in names:
        kind = "a TorchScript program" if "constants.pkl" in names else "some other zip file"
        raise CheckpointError("a checkpoint must hold weights", seen=f"{path} is {kind}",
                              hint="save the model's state_dict() with torch.save and give that")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # torch.save never compresses, and a compressed record could unpack to any size.
        raise CheckpointError("a checkpoint must be as torch.save writes it",
                              seen=f"{path} was compressed afterwards",
                              hint="save the state_dict() again with torch.save")


def _refused(path: Path, wanted: str) -> CheckpointError:
    return CheckpointError("a checkpoint must hold nothing but tensors and plain values",
                           seen=f"{path} wants to run {wanted} when it is read, which was not "
                                "done",
                           hint="save the model's state_dict() alone, or as safetensors, "
                                "and give that file")


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Plain values that training scripts leave beside the tensors: numpy numbers and options."""
    scalar: Any = np.float64(0).__reduce__()[0]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"),
            np.dtype, Float32DType, Float64DType, Int32DType, Int64DType, argparse.Namespace]


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        inner = _inner(loaded)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError("a checkpoint must hold named tensors",
                              seen=f"{path} holds {_described(loaded)}",
                              hint="save the model's state_dict() and give that file")
    state: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value)):
            raise CheckpointError("every value of a checkpoint's state must be a plain tensor",
                                  seen=f"{name!r} in {path} is {_described(value)}",
                                  hint="save the model's state_dict() and give that file")
        state[name] = value.detach()
    return state


def _inner(loaded: object) -> object | None:
    if not isinstance(loaded, Mapping) or all(isinstance(v, Tensor) for v in loaded.values()):
        return None
    return next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)


def _is_plain(value: Tensor) -> bool:
    return value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table without tensors" if value else "an empty table"
    if isinstance(value, Tensor):
        return f"a tensor of layout {value.layout} on {value.device}"
    return f"a value of type {type(value).__name__}"


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state
