"""Reading weights that a stranger made, without ever running what the file says.

Shapes in messages are tensor shapes as PyTorch prints them. A file is judged by its content, never
by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sanrobust.errors import CheckpointError
from sanrobust.files import atomic_write
from sanrobust.zoo import torchfiles
from sanrobust.zoo.download import looks_like_html, looks_like_text
from sanrobust.zoo.pickles import STUMBLES, Unsafe
from sanrobust.zoo.stored import Unreadable, held
from sanrobust.zoo.wrapping import Weights, chosen

METADATA_KEY = "sanrobust"

_HEAD_BYTES = 4096
_ZIP_MAGIC = b"PK"
_PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05]")


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
    try:
        loaded = _read_safetensors(path) if kind == "safetensors" else _read_torch(path, kind)
        return chosen(loaded, path, use_ema=use_ema)
    except Unreadable as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise _damaged(path, f"reading it failed: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError("a checkpoint must fit into memory", seen=f"{path} does not",
                              hint="free some memory, or give the state_dict() alone") from error


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
        if not path.is_file():
            raise OSError("not a regular file")  # a pipe would wait for somebody to write
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
        return {name: held(value) for name, value in load_file(path, device="cpu").items()}
    # What the library does not know of a file it says in any of these ways.
    except (SafetensorError, RuntimeError, *STUMBLES) as error:
        raise _damaged(path, "its safetensors content does not read") from error


def _read_torch(path: Path, kind: str) -> object:
    try:
        return (torchfiles.read_zip if kind == "zip" else torchfiles.read_legacy)(path)
    except torchfiles.NotWeights as error:
        raise CheckpointError("a checkpoint must hold weights", seen=f"{path} is {error}",
                              hint="save the model's state_dict() with torch.save and give that"
                              ) from error
    except Unsafe as error:
        raise _refused(path, str(error)) from error


def _refused(path: Path, wanted: str) -> CheckpointError:
    return CheckpointError("a checkpoint must hold nothing but tensors and plain values",
                           seen=f"{path} wants to run {wanted} when it is read, which was not "
                                "done",
                           hint="save the model's state_dict() alone, or as safetensors, "
                                "and give that file")
