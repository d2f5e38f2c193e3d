"""Reading a pickle of tensors and plain values: nothing is run, nothing recurses, all is bounded.

PyTorch's own careful reader runs nothing of a stranger's either, but follows instructions that
take all memory or end the process. Here an instruction moves values between plain containers, and
the few functions that checkpoints name are stood in for by functions of this file.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch

from sanrobust.zoo.stored import Storage, StoredTensor, Unreadable, special, stored

Persistent = Callable[[tuple[Any, ...]], Storage]

# Each instruction makes at most one small container, so that memory is bounded with them.
_MOST_INSTRUCTIONS = 2_000_000
_TEXT_UNIT = 64  # so many characters weigh as much as an instruction
_LONGEST_NAME = 200
_LONGEST_NUMBER = 255 * 8  # bits
# Below it, two integers of one hash are one integer, so that no table becomes slow.
_LARGEST_KEY = 2**61 - 1
# What a damaged pickle makes the steps below stumble over; none of it is our defect.
STUMBLES = (ValueError, LookupError, TypeError, AttributeError, OverflowError)


class Unsafe(Exception):
    """A pickle names something to run that no checkpoint needs; its text is that name."""


class Opaque:
    """A value that is of no use to a checkpoint's reader, of which only its type is kept."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Name(str):
    """Something that a pickle names by module and attribute."""


class _Mark:
    """Where a pickle begins to collect values."""


def unpickled(stream: BinaryIO, persistent: Persistent | None = None) -> object:
    """Return the value of the pickle at which ``stream`` stands, and leave it behind the pickle.

    Tables become dicts, tensors `StoredTensor`; numpy's numbers and options of a command line
    become `Opaque`, and so do keys that are neither text nor numbers.

    Args:
        stream: of bytes in memory.
        persistent: returns the storage that a tuple of the file describes.

    Raises Unsafe for what wants to run, and Unreadable for what is damaged or out of bounds.
    """
    machine = _Machine(persistent)
    try:
        for operation, argument, _ in pickletools.genops(stream):
            machine.step(operation.name, argument)
        return machine.value()
    except STUMBLES as error:
        raise Unreadable("its instructions end early or do not read") from error


class _Machine:
    """The stack and the memory of an unpickler."""

    def __init__(self, persistent: Persistent | None) -> None:
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._weight = 0

    def value(self) -> object:
        """Return the only value left."""
        value, = self._stack
        return value

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        self._weigh(1)
        if name in _CONSTANTS:
            self._stack.append(_bounded(argument))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(argument)])
        elif name in _NEW:
            self._stack.append(_NEW[name]())
        elif name in _JOINED:
            count, join = _JOINED[name]
            items = self._popped(count)
            if join is _called:
                self._weigh(_weight(items[1]))
            self._stack.append(join(items))
        elif name in _ADDED:
            many, add = _ADDED[name]
            items = self._popped(many)
            add(self._stack[-1], items)
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._other(name, argument)

    def _weigh(self, weight: int) -> None:
        self._weight += weight
        if self._weight > _MOST_INSTRUCTIONS:
            raise Unreadable(f"it holds more than {_MOST_INSTRUCTIONS} instructions")

    def _other(self, name: str, argument: Any) -> None:
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name in ("POP", "POP_MARK"):
            self._popped(1 if name == "POP" else None)
        elif name == "GLOBAL":
            self._stack.append(_named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            self._stack.append(_named(*self._popped(2)))
        elif name == "BINPERSID":
            self._stack.append(self._storage(self._stack.pop()))
        else:
            raise Unreadable(f"it holds the instruction {name}")

    def _storage(self, told: Any) -> Storage:
        if self._persistent is None or not isinstance(told, tuple):
            raise Unreadable("it describes a storage as none")
        return self._persistent(told)

    def _popped(self, count: int | None) -> list[Any]:
        """Take ``count`` values from the stack; None for those down to the last mark."""
        if count is not None:
            if len(self._stack) < count:
                raise Unreadable("its instructions take more values than there are")
            items = self._stack[len(self._stack) - count:]
            del self._stack[len(self._stack) - count:]
            return items
        items = []
        while not isinstance(item := self._stack.pop(), _Mark):
            items.append(item)
        return items[::-1]


def element_type(kind: object) -> torch.dtype:
    """Return the type of the elements of a storage class that a pickle names."""
    dtype = _storage_type(str(kind)) if isinstance(kind, _Name) else None
    if dtype is None:
        raise Unreadable("it names no type of storage")
    return dtype


def _storage_type(name: str) -> torch.dtype | None:
    if name == "torch.storage.UntypedStorage":
        return torch.uint8
    return _STORAGES.get(name.replace("torch.cuda.", "torch."))


def _weight(arguments: Any) -> int:
    """Return what copying the arguments of a call once costs, in instructions."""
    return sum(len(each) // (_TEXT_UNIT if isinstance(each, str) else 1)
               for each in arguments if isinstance(each, (str, list, tuple, dict)))


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
        raise Unreadable(f"it holds a whole number of {value.bit_length()} bits")
    return value


def _named(module: object, attribute: object) -> object:
    """Return what a pickle means by a name, without importing it."""
    name = f"{module}.{attribute}"[:_LONGEST_NAME].replace("__builtin__.", "builtins.")
    if name in _DTYPES:
        return _DTYPES[name]
    if name in _CALLS or name in _PASSIVE or _storage_type(name) or _BESIDE.fullmatch(name):
        return _Name(name)
    raise Unsafe(name)


def _called(items: list[Any]) -> object:
    """Do what a pickle means by calling a name with a tuple of arguments."""
    name, arguments = items
    if not isinstance(name, _Name):
        raise Unreadable("it calls what is no function")
    if _BESIDE.fullmatch(name):
        return Opaque(name)
    if name not in _CALLS:
        raise Unsafe(str(name))
    return _CALLS[name](*arguments)


def _subclass(function: object, _: object, arguments: object, *__: object) -> object:
    """Return a tensor with attributes, which are left out."""
    if function not in _REBUILT:
        raise Unreadable("it makes a tensor in an unknown way")
    return _called([function, arguments])


def _key(value: object) -> object:
    """Return a key that finds its place at once, whatever the file holds."""
    if isinstance(value, (str, bytes, float, type(None))) or (
            isinstance(value, int) and abs(value) < _LARGEST_KEY):
        return value
    return Opaque(type(value).__name__)


def _fill(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise Unreadable("it fills a table that is none")
    target.update(zip(map(_key, items[::2]), items[1::2]))


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise Unreadable("it fills a list that is none")
    target.extend(items)


def _table(items: list[Any]) -> dict[object, object]:
    table: dict[object, object] = {}
    _fill(table, items)
    return table


def _ordered(pairs: Any = ()) -> dict[object, object]:
    found = list(pairs.items()) if isinstance(pairs, Mapping) else [(key, each)
                                                                    for key, each in pairs]
    return {_key(key): each for key, each in found}


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Unreadable("it holds bytes in an unknown encoding")
    return text.encode("latin1")


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, _: object = None,
            __: object = None, lazy: object = None) -> StoredTensor:
    if lazy:
        return special("lazily conjugated")
    return stored(storage, offset, tuple(shape), tuple(stride), storage.dtype)


def _typed_tensor(storage: Storage, offset: int, shape: Any, stride: Any, _: object, __: object,
                  dtype: torch.dtype, lazy: object = None) -> StoredTensor:
    if lazy:
        return special("lazily conjugated")
    return stored(storage, offset, tuple(shape), tuple(stride), dtype)


def _special(kind: str) -> Callable[..., object]:
    return lambda *_: special(kind)


_CONSTANTS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split())
_NEW: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "MARK": _Mark,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list,
}
# How many values an instruction takes (None: those down to the last mark), and what it makes.
_JOINED: dict[str, tuple[int | None, Callable[[list[Any]], object]]] = {
    "TUPLE": (None, tuple), "TUPLE1": (1, tuple), "TUPLE2": (2, tuple), "TUPLE3": (3, tuple),
    "LIST": (None, list), "DICT": (None, _table), "FROZENSET": (None, list),
    "REDUCE": (2, _called), "NEWOBJ": (2, _called),
    "BUILD": (2, lambda items: items[0]),  # an object's attributes
}
_ADDED: dict[str, tuple[int | None, Callable[[Any, list[Any]], None]]] = {
    "APPEND": (1, _extend), "APPENDS": (None, _extend), "ADDITEMS": (None, _extend),
    "SETITEM": (2, _fill), "SETITEMS": (None, _fill),
}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items()
           if isinstance(value, torch.dtype)}
_STORAGES = {f"torch.{name}Storage": _DTYPES[f"torch.{dtype}"] for name, dtype in (
    each.split("=") for each in
    "BFloat16=bfloat16 Bool=bool Byte=uint8 Char=int8 ComplexDouble=complex128 "
    "ComplexFloat=complex64 Double=float64 Float=float32 Half=float16 Int=int32 Long=int64 "
    "QInt32=qint32 QInt8=qint8 QUInt2x4=quint2x4 QUInt4x2=quint4x2 QUInt8=quint8 "
    "Short=int16".split())}
# Plain values that training scripts leave beside the tensors: numpy's numbers and options.
_BESIDE = re.compile(r"numpy\.dtype|numpy\._?core\.multiarray\.scalar|numpy\.dtypes\.\w+DType|"
                     r"argparse\.Namespace")
_PASSIVE = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.per_tensor_affine",
            "torch.per_tensor_symmetric", "torch.per_channel_affine",
            "torch.per_channel_symmetric", "torch.per_channel_affine_float_qparams")
_REBUILT = tuple(f"torch._utils._rebuild_{name}" for name in (
    "parameter", "tensor", "tensor_v2", "tensor_v3"))
_CALLS: dict[str, Callable[..., object]] = {
    "_codecs.encode": _encoded,
    "builtins.complex": complex,
    "builtins.set": list,
    "collections.Counter": _ordered,
    "collections.OrderedDict": _ordered,
    "torch.Size": lambda lengths=(): tuple(lengths),
    "torch.device": lambda *_: Opaque("torch.device"),
    "torch.serialization._get_layout": lambda *_: Opaque("torch.layout"),
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _special("foreign device's"),
    "torch._utils._rebuild_device_tensor_from_numpy": _special("foreign device's"),
    "torch._utils._rebuild_meta_tensor_no_storage": _special("valueless"),
    "torch._utils._rebuild_nested_tensor": _special("nested"),
    "torch._utils._rebuild_qtensor": _special("quantised"),
    "torch._utils._rebuild_sparse_tensor": _special("sparse"),
    "torch._utils._rebuild_wrapper_subclass": _special("wrapped"),
}
