"""The pages of docs/ as examples: their blocks read, run in order, and held to what they show.

- ``console`` blocks hold commands behind ``$ `` and, below each, what it prints.
- ``python`` blocks run one after the other as one script; a ``text`` block behind one shows what
  it prints.
- ``{code-block}`` with a caption is a file of that name.
- A line ``<!-- not run: REASON -->`` before a block says why it is read alone.

In what is shown ``...`` stands for anything, blanks and line breaks are all alike, and a number
with a decimal point may differ from the real one a little: on another processor a prediction that
is nearly undecided can fall otherwise.
"""

from __future__ import annotations

import contextlib
import glob
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POINTS, SHARE = 2.0, 0.05
"""How far a rate with one decimal may be off, in points, and another number, as a part of it."""
TOOLS = ("head", "ls")
RUN, READ, SHOWN = ("console", "python"), ("sql", "bibtex"), ("text", "latex")
_BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>[^>]+) -->\n)?"
                    r"```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_CAPTION = re.compile(r"\A:caption: (\S+)\n\n?")
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d+(?![\w.]*\d)")
_PARTS = re.compile(rf"({_NUMBER.pattern}|\.\.\.)")


@dataclass
class Example:
    """A block of a page.

    Attributes:
        language: of the block.
        text: of the block.
        reason: why it is not run; empty where it is.
        shown: what a ``text`` block behind it shows; None without one.
        line: where it begins.
    """

    language: str
    text: str
    reason: str
    line: int
    shown: str | None = None

    @property
    def file(self) -> str | None:
        """Name of the file that it is; None for a block that is none."""
        caption = _CAPTION.match(self.text) if self.language.startswith("{code-block}") else None
        return caption[1] if caption else None

    @property
    def content(self) -> str:
        """The text of the file."""
        return _CAPTION.sub("", self.text)

    def typed(self) -> Iterator[list[str]]:
        """Yield the words of each command of ours in a console block."""
        for line, _ in self.commands():
            words = shlex.split(line, comments=True)
            if words[0] == "sanrobust":
                yield words[1:]

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield each command of a console block with the output that is shown below it."""
        first, *parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        assert not first.strip(), f"line {self.line}: a command begins with a dollar sign"
        for part in parts:
            typed, _, shown = part.partition("\n")
            yield typed, shown


def examples(page: Path) -> list[Example]:
    """Return the blocks of a page; directives that hold no code are none."""
    found: list[Example] = []
    text = page.read_text("utf-8")
    for match in _BLOCK.finditer(text):
        language = match["language"]
        if language in SHOWN:
            if found and found[-1].language == "python" and found[-1].shown is None:
                found[-1].shown = match["text"]
            continue
        if language.startswith("{") and not language.startswith("{code-block}"):
            continue
        line = text.count("\n", 0, match.start()) + 1
        found.append(Example(language, match["text"], (match["reason"] or "").strip(), line))
    return found


def difference(shown: str, real: str) -> str | None:
    """Say how what is shown differs from what was printed; None where it does not."""
    words, numbers = [], []
    for word in shown.split():
        words.append(r"(?:\S+ )*?" if word == "..." else _pattern(word) + " ")
        numbers += _NUMBER.findall(word)
    match = re.fullmatch("".join(words), "".join(f"{word} " for word in real.split()))
    if match is None:
        return f"shown:\n{shown}\nprinted:\n{real}"
    for told, seen in zip(numbers, match.groups(), strict=True):
        off = abs(float(told) - float(seen))
        places = len(told.partition(".")[2])
        if off > (POINTS if places == 1 else SHARE * abs(float(told))):
            return f"{told} is shown and {seen} printed, in\n{real}"
    return None


def _pattern(word: str) -> str:
    """Return what matches a word, with a group for each number in it."""
    return "".join(r"([+-]?\d+\.\d+)" if _NUMBER.fullmatch(part) else
                   r"\S*" if part == "..." else re.escape(part) for part in _PARTS.split(word))


class Reader:
    """Someone who types what a page says, from top to bottom, in a folder of its own.

    Args:
        folder: where; the working folder of this process.
        command: runs ``sanrobust`` with arguments.
    """

    def __init__(self, folder: Path, command: Callable[..., Any]) -> None:
        self._folder, self._command = folder, command
        self._names: dict[str, Any] = {"__name__": "example"}

    def follow(self, example: Example) -> Iterator[tuple[str, str | None, str]]:
        """Run a block; yield what was typed, what is shown and what was printed."""
        if example.file is not None:
            (self._folder / example.file).write_text(example.content, "utf-8")
        elif example.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(example.text, f"line {example.line}", "exec"), self._names)
            yield example.text, example.shown, printed.getvalue()
        else:
            for typed, shown in example.commands():
                yield typed, shown, self._typed(typed)

    def _typed(self, line: str) -> str:
        words = [each for word in shlex.split(line, comments=True) for each in _expanded(word)]
        program, *arguments = words
        if program == "sanrobust":
            result = self._command(*arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"
            return str(result.output)
        assert program in TOOLS, f"{line}: run by no test; say why it is not run"
        done = subprocess.run(words, cwd=self._folder, capture_output=True, text=True, check=True)
        return done.stdout


def _expanded(word: str) -> list[str]:
    """Return the files that a pattern names, as a shell does; else the word."""
    return sorted(glob.glob(word)) or [word] if "*" in word else [word]
