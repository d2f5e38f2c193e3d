"""What CONTRIBUTING says of the code is true: the floors, and every file and name in its steps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sanrobust
from conftest import SOURCES

ROOT = Path(SOURCES)
PACKAGE = Path(sanrobust.__file__).parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def floors() -> list[tuple[str, int]]:
    """The members of the table, modules as ``NAME.py`` and packages as ``NAME/``."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", TEXT, re.MULTILINE)
    return [(name, int(floor)) for floor, row in rows
            for name in re.findall(r"`([\w.]+(?:\.py|/))`", row)]


FLOORS = dict(floors())


def member(module: Path) -> str:
    """The module itself, or the package of the table in which it lies."""
    return module.name if len(module.parts) == 1 else f"{module.parts[0]}/"


def is_for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING",
                                                                   "typing.TYPE_CHECKING")


def imported(node: ast.AST) -> Iterator[str]:
    """The dotted names that a module imports, within functions too, but for types alone."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    children = node.orelse if isinstance(node, ast.If) and is_for_types_alone(node) \
        else ast.iter_child_nodes(node)
    for child in children:
        yield from imported(child)


def members_imported(source: str) -> set[str]:
    """The members of the table that a module's text imports; ``sanrobust`` for the root."""
    found = set()
    for name in imported(ast.parse(source)):
        first, _, rest = name.partition(".")
        if first == "sanrobust":
            part = rest.partition(".")[0]
            is_module = (PACKAGE / f"{part}.py").is_file()
            is_package = bool(part) and (PACKAGE / part).is_dir()
            found.add(f"{part}.py" if is_module else f"{part}/" if is_package else "sanrobust")
    return found


def test_every_module_stands_on_one_floor_and_nothing_else_does() -> None:
    names = [name for name, _ in floors()]
    assert sorted(names) == sorted({member(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_lower_floors_and_its_own_package_alone(module: Path) -> None:
    own = member(module)
    for other in members_imported((PACKAGE / module).read_text("utf-8")) - {own}:
        assert other in FLOORS, f"{module} imports {other}, the package's root"
        assert FLOORS[other] < FLOORS[own], (
            f"{module} on floor {FLOORS[own]} imports {other} on floor {FLOORS[other]}")


@pytest.mark.parametrize(("source", "found"), [
    ("from sanrobust.zoo.names import parse", {"zoo/"}),
    ("from sanrobust.zoo import names", {"zoo/"}),
    ("import sanrobust.zoo.names as names", {"zoo/"}),
    ("from sanrobust import paper, errors", {"paper/", "errors.py"}),
    ("from sanrobust import rotate", {"sanrobust"}),
    ("import sanrobust", {"sanrobust"}),
    ("import sanrobustness", set()),
    ("def f():\n    if True:\n        from sanrobust.run import run", {"run.py"}),
    ("if TYPE_CHECKING:\n    from sanrobust.run import run", set()),
    ("if TYPE_CHECKING:\n    import a\nelse:\n    from sanrobust.run import run", {"run.py"}),
])
def test_imports_are_found_wherever_they_stand(source: str, found: set[str]) -> None:
    assert members_imported(source) == found


def sections() -> dict[str, str]:
    titles = re.findall(r"^## ((?:Adding|Changing) .*)$", TEXT, re.MULTILINE)
    return {title: TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0] for title in titles}


def located(name: str) -> Path | None:
    return next((base / name for base in (ROOT, PACKAGE) if (base / name).exists()), None)


@pytest.mark.parametrize("title", sections())
def test_every_file_and_every_name_in_a_recipe_exists(title: str) -> None:
    # A block holds commands, which `test_words` reads; of a path or a name nothing is said twice.
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", sections()[title], flags=re.S))
    quoted += [part for part in " ".join(quoted).split() if part.startswith("tests/")]
    paths = {word: located(word) for word in quoted
             if re.fullmatch(r"[\w./-]+(\.(py|h|cfg)|/)", word) and not word.startswith(".")}
    assert paths and all(paths.values()), paths
    text = "\n".join(path.read_text("utf-8") for path in paths.values() if path and path.is_file())
    names = {word.removesuffix("()") for word in quoted
             if re.fullmatch(r"[A-Za-z_]\w+(\(\))?", word)}
    missing = {name for name in names if not re.search(rf"\b{name}\b", text)}
    assert not missing, f"{title}: {missing}"
