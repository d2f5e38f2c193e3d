"""What messages, help texts and documents tell people to type exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from torch.distributed.run import get_args_parser

import sanrobust
from conftest import SOURCES
from sanrobust.cli import main
from sanrobust.tensors import Attacked

PACKAGE = Path(sanrobust.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# "install sanrobust again" names no command.
COMMAND = re.compile(r"\bsanrobust (?!again\b)([a-z]+)(?: ([a-z]+)\b)?")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md",
             *sorted(f"docs/{page.name}" for page in (Path(SOURCES) / "docs").glob("*.md")))


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


def command_named(words: tuple[str, ...]) -> click.Command:
    found: click.Command = main
    for word in words:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


def options(command: click.Command) -> set[str]:
    return {name for param in command.params if isinstance(param, click.Option)
            for name in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}


COMMANDS = tuple(commands(main))
OPTIONS = set().union(*(options(command_named(words)) for words in COMMANDS)) | {"--version"}
# Of the programs that start ours, in sentences that name them.
OTHERS = {"torchrun": {name for action in get_args_parser()._actions
                       for name in action.option_strings},
          "sbatch": {"--array"}}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every text of a module; what a formatted one puts in reads as a blank."""
    inside: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside.update(node.values)
            yield node.lineno, "".join(
                str(part.value) if isinstance(part, ast.Constant) else " " for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.lineno, node.value


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "kernels" not in path.parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_option_and_command_that_a_module_names_exists(path: Path) -> None:
    for line, text in strings(path):
        known = OPTIONS.union(*(theirs for name, theirs in OTHERS.items() if name in text))
        for option in OPTION.findall(text):
            assert option in known, f"{path.name}:{line} names {option}"
        for first, second in COMMAND.findall(text):
            assert (first,) in COMMANDS, f"{path.name}:{line} names sanrobust {first}"
            if second and isinstance(command_named((first,)), click.Group):
                assert (first, second) in COMMANDS, f"{path.name}:{line}: {first} {second}"


def typed(document: str) -> Iterator[list[str]]:
    """Yield the words of every command line of ours in a document."""
    text = (Path(SOURCES) / document).read_text("utf-8").replace("\\\n", " ")
    # In blocks a comment may follow; in a sentence a command ends with its quotation mark.
    lines = re.findall(r"^\$? ?(sanrobust .*)$", text, re.MULTILINE)
    lines += re.findall(r"`(sanrobust [^`]*)`", text)
    for line in lines:
        yield shlex.split(line.partition("  #")[0].replace("…", ""), comments=True)[1:]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_line_of_a_document_can_be_typed(document: str) -> None:
    for words in typed(document):
        alternatives = words[0].split("|") if words else []
        for first in alternatives:
            if first.startswith("-"):
                continue
            names: tuple[str, ...] = (first,)
            assert names in COMMANDS, f"{document}: sanrobust {first}"
            if isinstance(command_named(names), click.Group) and len(words) > 1:
                for second in words[1].split("|"):
                    assert (first, second) in COMMANDS, f"{document}: sanrobust {first} {second}"
                names = (first, words[1].split("|")[0])
            known = options(command_named(names))
            for word in words[1:]:
                if re.match(r"--?[A-Za-z]", word):
                    assert word.partition("=")[0] in known, f"{document}: {' '.join(words)}"


def test_names_of_make_targets_in_documents_exist() -> None:
    makefile = (Path(SOURCES) / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    for document in DOCUMENTS:
        text = (Path(SOURCES) / document).read_text("utf-8")
        for target in re.findall(r"(?:`|^)make ([a-z0-9-]+)", text, re.MULTILINE):
            assert target in targets, f"{document}: make {target}"


@pytest.mark.slow
def test_the_python_examples_of_the_readme_run(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (Path(SOURCES) / "README.md").read_text("utf-8"),
                        re.DOTALL)
    found: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), found)
    rotated, attacked, adversarial = found["rotated"], found["attacked"], found["found"]
    assert isinstance(rotated, sanrobust.Result) and rotated.table["n"].tolist() == [100]
    assert isinstance(attacked, sanrobust.Result) and attacked.table["iters"].tolist() == [4]
    assert isinstance(adversarial, Attacked) and list(adversarial.robust_accuracy) == [4.0, 8.0]
