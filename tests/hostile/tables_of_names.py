"""CSVs of labels, classes and targets with one damage each, and bytes that are no CSV at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from image_files import save_noise

from hostile.case import Case
from hostile.examples import examples

Rows = list[list[str]]
MODEL = "resnet26.untrained-small"


@dataclass(frozen=True)
class Kind:
    """A CSV: the name of its file, its columns, its rows and the command that takes it."""

    file: str
    columns: tuple[str, str]
    rows: tuple[tuple[str, str], ...]
    argv: tuple[str, ...]


_FLAT = (("a.png", "1"), ("b.png", "2"), ("d/c.png", "3"))
KINDS = (
    Kind("l.csv", ("file", "class_index"), _FLAT,
         ("rotate", "--data", "flat", "--labels", "l.csv")),
    Kind("m.csv", ("folder", "class_index"), (("x", "1"), ("y", "2")),
         ("rotate", "--data", "tree", "--class-map", "m.csv")),
    Kind("t.csv", ("image", "target"), (("a.png", "4"), ("b.png", "5"), ("d/c.png", "6")),
         ("pgd", "--data", "flat", "--labels", "good.csv", "--targets", "file:t.csv")),
)
_NUMBERS = ("", "-1", "1.0", "1e0", "nan", "inf", "\u0661", "\uff11", "0x1", "1_0", "9" * 4400,
            "9" * 10, "10", "one", "+1", "--1", "1 1", "\x1b[2J", "1" * 200_000)
_NAMES = ("", " ", ".", "..", "/", "../flat/b.png", "/etc/passwd", "\x1b[2J", "\0", "a\nb",
          "\u202e", "n" * 300, "n" * 5000, "n/" * 3000, "no.png", "A.PNG", "~", "d", "x/../y",
          "\\\\server\\share", "C:\\a.png")


def _number(rows: Rows, order: random.Random) -> None:
    order.choice(rows[1:])[1] = order.choice(_NUMBERS)


def _name(rows: Rows, order: random.Random) -> None:
    order.choice(rows[1:])[0] = order.choice(_NAMES)


def _twice(rows: Rows, order: random.Random) -> None:
    rows.append([order.choice(("", "./", ".//")) + rows[1][0], order.choice(("1", "2"))])


def _missing(rows: Rows, order: random.Random) -> None:
    del rows[order.randrange(len(rows))]


def _column(rows: Rows, order: random.Random) -> None:
    place = order.randrange(2)
    rows[0][place] = order.choice(("", "x", rows[0][1 - place], rows[0][place].upper(),
                                   rows[0][place] + "\0", "n" * 5000))


_DAMAGES: tuple[Callable[[Rows, random.Random], None], ...] = (
    _number, _name, _twice, _missing, _column)
_JUNK = st.one_of(st.binary(max_size=200), st.text(max_size=200).map(
    lambda text: text.encode("utf-8", "surrogatepass")))


def tables_of_names(folder: Path, seed: int) -> Iterator[Case]:
    """Yield each kind of CSV, damaged in one place, with another encoding, or junk."""
    for place, name in enumerate(("flat/a.png", "flat/b.png", "flat/d/c.png", "tree/x/a.png",
                                  "tree/y/b.png")):
        save_noise(folder / name, size=(32, 32), seed=place)
    (folder / "good.csv").write_bytes(_text([["file", "class_index"], *map(list, _FLAT)]))
    junk = examples(_JUNK, 200, seed)
    order = random.Random(seed)
    for number in range(2000):
        kind = order.choice(KINDS)
        file = f"{number}-{kind.file}"
        (folder / file).write_bytes(order.choice((_damaged, _damaged, _damaged, _encoded))(
            kind, order) if order.random() < 0.8 else order.choice(junk))
        argv = tuple(word.replace(kind.file, file) for word in kind.argv)
        yield Case(file, (*argv, "-m", MODEL, "--out", "o"), folder)


def _damaged(kind: Kind, order: random.Random) -> bytes:
    rows = [list(kind.columns), *map(list, kind.rows)]
    order.choice(_DAMAGES)(rows, order)
    return _text(rows)


def _encoded(kind: Kind, order: random.Random) -> bytes:
    """Return a sound table written as none of ours is."""
    text = _text([list(kind.columns), *map(list, kind.rows)])
    return order.choice((
        text.decode().encode("utf-16"), text.decode().encode("utf-32"), text.replace(b",", b";"),
        text.replace(b",", b"\t"), text + b"\xff\xfe,1\n", text[:-2] + b'"', b'"' + text,
        b"\x1f\x8b" + text, b"", b"\n\n\n", b"\0" * 1_000_000, text.replace(b"\n", b",\n"[::-1]),
        text.splitlines()[0] + b"\n" + b"\x80" * 10))


def _text(rows: Rows) -> bytes:
    quoted = ([f'"{cell}"' if "\n" in cell or '"' in cell else cell for cell in row]
              for row in rows)
    return "".join(",".join(row) + "\n" for row in quoted).encode()
