"""Tables as they were printed and written before: text, CSV, Markdown and LaTeX, byte for byte.

A golden file that is missing is written and fails its test once: delete those that are meant to
change, run the tests twice, and read the difference before it is committed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import Command
from grey_models import CLASSES, folders
from sanrobust.tables import Table, to_csv, to_latex, to_markdown, to_text
from table_cases import MIXED, TABLES

GOLDEN = Path(__file__).parent / "golden"
RENDERERS = {"text": lambda table: to_text(table, width=100), "csv": to_csv,
             "md": to_markdown, "tex": to_latex}
SESSION = (
    ("rotate", "-m", "grey_models:right", "-m", "grey_models:wrong"),
    ("pgd", "-m", "grey_models:right", "-m", "grey_models:wrong"),
    ("pgd", "-m", "grey_models:right", "--eps", "4", "--step", "1", "--iters", "2",
     "--targets", "fixed:1", "--random-start", "--restarts", "2", "--loss", "margin"),
    ("rotate", "-m", "grey_models:wrong", "--num-samples", "3"),
    ("table",),
    ("table", "pgd", "--model", "grey_models:right"),
)


def compare(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
        pytest.fail(f"{path.name} was missing and is written: read it, and run again")
    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("name", [*TABLES, "attacks of two kinds"])
def test_a_table_is_rendered_as_before(name: str) -> None:
    table: Table = {**TABLES, "attacks of two kinds": MIXED}[name]
    parts = [f"=== {form}\n{render(table)}" for form, render in RENDERERS.items()]
    compare(re.sub(r"\W+", "-", name), "\n".join(parts))


def test_a_session_of_commands_prints_and_writes_as_before(command: Command,
                                                           tmp_path: Path) -> None:
    images, out = folders(tmp_path / "val", list(range(CLASSES))), tmp_path / "o"
    parts = []
    for words in SESSION:
        more = () if words[0] == "table" else ("--data", images)
        parts.append(f"=== {' '.join(words)}\n{command(*words, *more, '--out', out).stdout}")
        parts += [f"--- {path.name}\n{path.read_text('utf-8')}" for path in sorted(out.iterdir())
                  if path.is_file()]
    compare("session", steady("\n".join(parts)))


def steady(text: str) -> str:
    """Blank digests, which know the tests' own code, and digits that versions of scipy decide."""
    rounded = re.sub(r"\d+\.\d{7,}", lambda found: f"{float(found[0]):.6f}", text)
    return re.sub(r"(?<![\d.])[0-9a-f]{12,}", "DIGEST", rounded)
