"""Reading weights that a stranger made, without ever running what the file says.

Shapes in messages are tensor shapes as PyTorch prints them. A file is judged by its content, never
by its name.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.dtypes import Float32DType, Float64DType, Int32DType, Int64DType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sanrobust.errors import CheckpointError
from sanrobust.files import atomic_write
from sanrobust.zoo import pickles
from sanrobust.zoo.download import looks_like_html, looks_like_text
from sanrobust.zoo.wrapping import Weights, chosen

METADATA_KEY = "sanrobust"

_HEAD_BYTES = 4096
_ZIP_MAGIC = b"PK"
_PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05]")
_UNSAFE_NAME = re.compile(r"GLOBAL (\S+)")


def read_state_dict(path: Path) -> dict[str, Any]:
    """Return the named tensors of a checkpoint as `read_weights` finds them."""
    return read_weights(path).state


def read_weights(path: Path, *, use_ema: bool = False) -> Weights:
    """Return the weights of a checkpoint, on the CPU, with no code of the file run.

    Reads safetensors, PyTorch zip files and PyTorch's legacy pickles. The tensors may sit under
    usual keys of a training checkpoint (``state_dict``, ``model``, ...), averaged ones beside the
    raw ones; leading ``module.`` and ``_orig_mod.`` are dropped where every name has them.

    Args:
        path: the file.
        use_ema: take the averaged weights.

    Raises CheckpointError for anything else.
    """
    kind = _content(path)
    loaded = _read_safetensors(path) if kind == "safetensors" else _read_torch(path, kind)
    return chosen(loaded, path, use_ema=use_ema)


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
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its {METADATA_KEY!r} metadata is not JSON") from error
    if not isinstance(facts, dict):
        raise _damaged(path, f"its {METADATA_KEY!r} metadata is not a table")
    return facts


def save_safetensors(state: Mapping[str, Tensor], path: Path,
                     metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and text metadata to ``path``, whole or not at all."""
    content = safetensors_bytes(state, metadata)
    with atomic_write(path) as stream:
        stream.write(content)


def safetensors_bytes(state: Mapping[str, Tensor],
                      metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors and text metadata as the content of a safetensors file."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    return save(tensors, dict(metadata) if metadata else None)


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
    _require_readable(path, kind)
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
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError,
            AssertionError, OverflowError) as error:
        raise _damaged(path, "it ends early or its content does not read") from error


def _require_readable(path: Path, kind: str) -> None:
    """Refuse a file whose reading would take the process or all memory with it."""
    if kind == "zip":
        refusal = _require_torch_zip(path)
    else:
        with path.open("rb") as stream:
            refusal = pickles.refusal(stream)
    if refusal is not None:
        raise CheckpointError("a checkpoint must be as torch.save writes it",
                              seen=f"reading {path} was not tried because {refusal}",
                              hint="check where the file came from")


def _require_torch_zip(path: Path) -> str | None:
    """Say what in the zip's instructions must not be read; raises for one of another kind."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            refusal = _unpickling_refusal(archive, members)
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
    if sum(member.file_size for member in members) > path.stat().st_size:
        return "its records are larger than the file, so they overlap"
    return refusal


def _unpickling_refusal(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> str | None:
    for member in members:
        if member.filename.endswith("data.pkl") and member.compress_type == zipfile.ZIP_STORED:
            with archive.open(member) as stream:
                refusal = pickles.refusal(io.BytesIO(stream.read()), pickles=1)
            if refusal is not None:
                return refusal
    return None


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
