"""A digest of the code behind a network, as far as it can be followed.

The user's own modules count by the content of their files: the factory's, those of the network's
classes, and every module that these import, within functions too. What is defined in a notebook
or in the script that was started counts piece by piece, by its source or, where there is none, by
its compiled instructions. The network's own values that are no weights count beside the code:
numbers, texts, tensors, functions and objects in attributes and hooks, and buffers that are not
saved. So do the values that the user's modules and classes hold once the network is built: what
was read from a file or from the environment by then counts as well. A module with values that
differ at every start is another model at every start.

Not followed are installed libraries and the standard library, what the code reads while images
pass, and modules that it imports by a computed name before any class of theirs is part of the
network. No path on the machine counts, and no device.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanrobust.files import sha256_file
from sanrobust.zoo.digest import (LIBRARIES, MODULE_ATTRIBUTES, instructions, is_installed,
                                  qualified, value_digest)
from sanrobust.zoo.torchscript import program

_MAIN = "__main__"
_DESCRIPTORS = (property, classmethod, staticmethod, types.MemberDescriptorType,
                types.GetSetDescriptorType)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def code_digest(network: nn.Module, *made_by: object) -> str:
    """Return the SHA-256 of the code of ``network`` and of what made it.

    The same code gives the same digest in every process and from every folder.

    Args:
        network: before its first pass, which may leave traces in attributes.
        made_by: its factory, for one that has it.
    """
    functions = [function for module in network.modules() for function in _functions(module)]
    classes = [kind for module in network.modules() for kind in type(module).__mro__]
    package = origin(made_by[0]).partition(".")[0] if made_by else ""
    pieces = _Pieces(package)
    pieces.follow([*made_by, *classes, *functions])
    digest = hashlib.sha256()
    for line in (*sorted(pieces.lines), *_attributes(network)):
        digest.update(f"{line}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def added_code(value: object) -> str | None:
    """Return the SHA-256 of the code that another package adds with ``value``; None for ours.

    Args:
        value: a function or class of the package, whose modules are followed as a network's are.
    """
    package = origin(value).partition(".")[0]
    if package == __name__.partition(".")[0]:
        return None
    pieces = _Pieces(package)
    pieces.follow([value])
    return hashlib.sha256("\n".join(sorted(pieces.lines)).encode("utf-8", "surrogatepass")
                          ).hexdigest()


def own_modules(module: types.ModuleType) -> dict[str, types.ModuleType]:
    """Return the user's own modules that ``module`` reaches, itself among them, by name."""
    pieces = _Pieces(module.__name__.partition(".")[0])
    pieces.follow([module])
    return pieces.modules


def own_file(module: types.ModuleType) -> Path | None:
    """Return the file of a module; None for one without a file that can be read."""
    path = Path(getattr(module, "__file__", None) or "")
    return path if path.is_file() else None


def origin(value: object) -> str:
    """Return the name of the module that a value comes from; empty when it has none."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    try:
        name = getattr(value, "__module__", None)
    except Exception:  # stand-ins of other libraries raise what they like
        return ""
    return name if isinstance(name, str) else ""


class _Pieces:
    """The user's modules, and the functions and classes that belong to no file.

    Attributes:
        modules: found so far, by name.
        lines: what the digest is made of.
    """

    def __init__(self, package: str) -> None:
        self.modules: dict[str, types.ModuleType] = {}
        self.lines: list[str] = []
        self._package = "" if package in LIBRARIES else package
        self._seen: set[int] = set()

    def follow(self, values: Iterable[object]) -> None:
        """Enter where the values come from, and what is reached from there."""
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                name, value = value, sys.modules.get(value)
            else:
                value = inspect.unwrap(value) if inspect.isfunction(value) else value
                name = origin(value)
            module = sys.modules.get(name)
            if module is None or not self._is_own(module):
                continue
            if name == _MAIN or own_file(module) is None:
                waiting += self._piece(value)
            elif name not in self.modules:
                waiting += self._module(name, module)

    def _is_own(self, module: types.ModuleType) -> bool:
        top = module.__name__.partition(".")[0]
        if top == self._package:
            return True
        return not is_installed(module.__name__)

    def _module(self, name: str, module: types.ModuleType) -> list[object]:
        path = own_file(module)
        assert path is not None
        self.modules[name] = module
        self.lines.append(f"module {name} {sha256_file(path)}")
        self.lines += _values(name, vars(module))
        held = list(vars(module).values())
        for value in list(held):  # a table of models, as registries have them
            if isinstance(value, dict):
                held += value.values()
            elif isinstance(value, (list, tuple)):
                held += value
        named: list[object] = [name.rpartition(".")[0], *_imports(module, path)]
        return named + [value for value in held if not isinstance(value, str)]

    def _piece(self, value: object) -> list[object]:
        """Enter a function or class without a file, and return what it uses."""
        if id(value) in self._seen:
            return []
        self._seen.add(id(value))
        if isinstance(value, type):
            inside = {name: _plain(each) for name, each in vars(value).items()}
            values = {name: each for name, each in inside.items()
                      if not name.startswith("__") and not callable(each)}
            bases = tuple(map(qualified, value.__mro__))
            self.lines.append(f"class {qualified(value)} {value_digest((bases, values))}")
            return [*(each for each in inside.values() if callable(each)), *value.__mro__[1:]]
        if isinstance(value, types.ModuleType):
            return []
        if not inspect.isfunction(value):
            return [type(value)]
        self.lines.append(f"function {qualified(value)} {_text(value)}")
        used: list[object] = []
        for name, each in sorted(_used(value).items()):
            if isinstance(each, (types.ModuleType, type)) or inspect.isfunction(each):
                used.append(each)
            else:
                self.lines.append(f"value {qualified(value)} {name} {value_digest(each)}")
                used.append(type(each))
        return used


def _values(name: str, held: Mapping[str, object]) -> Iterator[str]:
    """Yield a line for each value that a module, or a class of it, holds beside its code."""
    for key, value in sorted(held.items()):
        if isinstance(value, type) and value.__module__ == name:
            yield from _values(f"{name}.{key}", vars(value))
        elif not (key.startswith("__") or callable(value)
                  or isinstance(value, (types.ModuleType, torch.device, *_DESCRIPTORS))):
            yield f"value {name}.{key} {value_digest(value)}"


def _imports(module: types.ModuleType, path: Path) -> Iterator[str]:
    """Yield the names of what a module's source imports anywhere, within functions too."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # a compiled module
        return
    package = module.__package__ or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # a relative import outside a package, never run
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _plain(value: object) -> object:
    """Return the function within a method of any kind."""
    if isinstance(value, property):
        return value.fget
    return inspect.unwrap(getattr(value, "__func__", value))  # type: ignore[arg-type]


def _text(function: types.FunctionType) -> str:
    """Return a digest of a function's source or, where there is none, of its instructions."""
    try:
        return value_digest(inspect.getsource(function))
    except (OSError, TypeError, SyntaxError, IndexError):
        return value_digest(instructions(function.__code__))


def _used(function: types.FunctionType) -> dict[str, Any]:
    """Return the globals, enclosed values and defaults that a function can read, by name."""
    names = set(_names(function.__code__))
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # a name that has no value yet
            continue
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return {**found, **{f"default {place}": value for place, value in enumerate(defaults)}}


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _functions(module: nn.Module) -> Iterator[object]:
    """Yield functions that were put on one module: another forward, hooks."""
    for name, value in vars(module).items():
        if name in _HOOKS:
            yield from (getattr(each, "__func__", each) for each in value.values())
        elif name not in MODULE_ATTRIBUTES and callable(value) and not isinstance(value, nn.Module):
            yield getattr(value, "__func__", value)


def _attributes(network: nn.Module) -> Iterator[str]:
    """Yield a line for each value of a network that is no weight, in the order of its modules."""
    for path, module in network.named_modules():
        yield f"part {path} {qualified(type(module))}"
        yield f"program {path} {value_digest(program(module))}"
        for name, value in sorted(vars(module).items()):
            if name in _HOOKS:
                yield from (f"hook {path} {value_digest(each)}" for each in value.values())
            elif name not in MODULE_ATTRIBUTES and not isinstance(value, nn.Module):
                yield f"attribute {path}.{name} {value_digest(value)}"
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(name)
            if isinstance(buffer, Tensor):
                yield f"buffer {path}.{name} {value_digest(buffer)}"
