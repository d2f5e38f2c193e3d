"""The user's own code: found, imported as it stands on disk, and called.

While it is imported and called, the working folder is on ``sys.path``; afterwards the path is as
it was. A module whose file was changed since it was loaded is loaded again.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from sanrobust.errors import ModelError, SanrobustError, UsageError, first_line
from sanrobust.files import sha256_file
from sanrobust.registry import unknown_name
from sanrobust.zoo.code import own_file, own_modules
from sanrobust.zoo.digest import instructions

Say = Callable[[str], None]

# The content of each own module's file when it was loaded, by name.
_LOADED: dict[str, tuple[types.ModuleType, str]] = {}


def find_callable(name: str, hint: str, say: Say = lambda _: None) -> Callable[..., Any]:
    """Return what ``module:attribute`` names, in the working folder or on the path.

    Args:
        name: as the user typed it.
        hint: what to name, for when it cannot be called.
        say: told in a sentence which modules were loaded again.

    Raises UsageError, ModelError or UnknownNameError, whichever part of the name is wrong.
    """
    module_name, _, attribute = name.partition(":")
    with here_on_path():
        module = _current(name, module_name, say)
    found: Any = module
    for part in attribute.split("."):
        public = [key for key in dir(found) if not key.startswith("_")]
        try:
            found = getattr(found, part)
        except AttributeError:
            raise unknown_name(f"callable of {module_name}", attribute, public,
                               listing=str(getattr(module, "__file__", module_name))) from None
    if not callable(found):
        raise ModelError(f"{name} must be something to call",
                         seen=f"it is a {type(found).__name__}", hint=hint)
    made: Callable[..., Any] = found
    return made


@contextmanager
def here_on_path() -> Iterator[None]:
    """Let modules of the working folder be imported, and leave ``sys.path`` as it was."""
    before, here = list(sys.path), os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path[:] = before


def settings(name: str, made: Callable[..., Any], num_classes: int | None,
             pretrained: bool) -> dict[str, object]:
    """Return the arguments for a factory: only those that its signature names.

    Raises ModelError for one that wants others.
    """
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # some callables written in C have none
        signature = inspect.Signature()
    named = signature.parameters
    chosen: dict[str, object] = {"pretrained": pretrained} if "pretrained" in named else {}
    if num_classes is not None:
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values())
        if "num_classes" not in named and not takes_any:
            raise ModelError(f"{name} must take num_classes to have {num_classes} classes",
                             seen="it has no such argument",
                             hint="add the argument, or use weights with its own classes")
        chosen["num_classes"] = num_classes
    try:
        signature.bind(**chosen)
    except TypeError as error:
        raise ModelError(f"{name} must be callable without arguments", seen=str(error),
                         hint="name a function that returns the finished network") from error
    return chosen


def failed(name: str, doing: str, error: BaseException) -> ModelError:
    """Return the sentence for an exception out of the user's own code."""
    where = next((f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
                  for frame in reversed(traceback.extract_tb(error.__traceback__))
                  if not _is_ours(frame.filename)), "")
    if isinstance(error, SyntaxError):
        where = f" ({os.path.basename(error.filename or '')}, line {error.lineno})"
    kind, line = type(error).__name__, first_line(error)
    said = kind if line == kind else f"{kind}: {line}"
    module, _, attribute = name.partition(":")
    hint = "mend it there" + (f"; python -c 'from {module} import {attribute}; {attribute}()' runs "
                              "it without sanrobust" if attribute else "")
    return ModelError(f"{name} must run without an exception",
                      seen=f"{doing} raised {said}{where}", hint=hint)


def _is_ours(filename: str) -> bool:
    package = str(Path(__file__).parents[1])
    return filename.startswith((package, "<frozen")) or os.sep + "torch" + os.sep in filename


def _current(name: str, module_name: str, say: Say) -> types.ModuleType:
    """Import a module as it stands on disk, together with what it uses of the user's own."""
    known = sys.modules.get(module_name)
    if known is not None and (stale := _stale(known)):
        say(f"{', '.join(sorted(stale))} changed on disk since it was loaded: loaded again")
        _forget(known, stale)
    module = _imported(name, module_name)
    # Python itself takes a compiled file for current that was changed within the same second.
    if stale := _stale(module):
        _forget(module, stale)
        module = _imported(name, module_name)
    remember(module)
    return module


def remember(module: types.ModuleType) -> None:
    """Record with what content the user's own modules that ``module`` reaches were loaded."""
    for own, each in own_modules(module).items():
        path = own_file(each)
        if path is not None and _LOADED.get(own, (None, ""))[0] is not each:
            _LOADED[own] = (each, sha256_file(path))


def _stale(module: types.ModuleType) -> set[str]:
    """Return the names of own modules that are loaded otherwise than their files say."""
    found = set()
    for name, each in own_modules(module).items():
        path = own_file(each)
        loaded, content = _LOADED.get(name, (None, ""))
        if path is not None and (sha256_file(path) != content if loaded is each
                                 else _differs(each, path)):
            found.add(name)
    return found


def _forget(module: types.ModuleType, stale: set[str]) -> None:
    for name, each in own_modules(module).items():
        path = own_file(each)
        if name in stale and path is not None:
            with suppress(OSError, NotImplementedError, ValueError):
                Path(cache_from_source(str(path))).unlink()
        sys.modules.pop(name, None)


def _differs(module: types.ModuleType, path: Path) -> bool:
    """Compare a loaded module's functions and named constants with those of its file."""
    try:
        source = path.read_bytes()
        code, tree = compile(source, str(path), "exec", dont_inherit=True), ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        # A compiled module, or one that will not load again: the import says why.
        return path.suffix == ".py"
    written = dict(_functions(code))
    for function in _loaded_functions(module):
        if function.__code__.co_filename == code.co_filename \
                and instructions(function.__code__) != written.get(function.__qualname__):
            return True
    return any(name in vars(module) and type(vars(module)[name]) is type(value)
               and vars(module)[name] != value for name, value in _constants(tree))


def _functions(code: types.CodeType, above: str = "") -> Iterator[tuple[str, object]]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            name = above + constant.co_name
            yield name, instructions(constant)
            # The name of a class's code ends there, a function's has this word behind it.
            inside = "." if constant.co_flags & inspect.CO_OPTIMIZED == 0 else ".<locals>."
            yield from _functions(constant, name + inside)


def _loaded_functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    for value in vars(module).values():
        members = list(vars(value).values()) if isinstance(value, type) else [value]
        for member in members:
            function = getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType) \
                    and function.__module__ == module.__name__:
                yield function


def _constants(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """Yield names that the file gives a plain value once and for all."""
    given: dict[str, list[ast.expr | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            given.setdefault(node.id, []).append(None)
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 \
                and isinstance(node.targets[0], ast.Name) \
                and len(given[node.targets[0].id]) == 1:
            with suppress(ValueError, TypeError):
                yield node.targets[0].id, ast.literal_eval(node.value)


def _imported(name: str, module_name: str) -> types.ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except SanrobustError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise ModelError(f"the module of {name} must import what it needs",
                             seen=f"it lacks {missing}",
                             hint=f"install {missing}") from error
        raise ModelError(f"the module of {name} must exist",
                         seen=f"there is no {missing} in {os.getcwd()} or on PYTHONPATH",
                         hint="go to the folder that holds it, or set PYTHONPATH to it") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit too
        if not module_name or module_name.startswith("."):
            raise UsageError("what to call must be written package.module:callable",
                             seen=f"it is {name!r}", hint="write it like mymodels:make") from error
        raise failed(name, f"importing {module_name}", error) from error
