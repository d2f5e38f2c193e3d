"""The one reader of labels, class maps and targets."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch

from sanrobust.attacks.targets import parse_rule
from sanrobust.csvfiles import CsvKind, Names, Row, plain, read_rows, shown
from sanrobust.errors import DataError

KIND = CsvKind("list", ("name", "number"), "--list")


def _read(path: Path, content: bytes | str) -> list[Row]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path, KIND)


@pytest.mark.parametrize("content", [
    "name,number\na,1\nb,2\n", "number,other,name\n1,x,a\n2,y,b\n", "\ufeffname,number\na,1\nb,2",
    " name , number \n a , 1 \n\nb,2\n", "name,number\r\na,1\r\nb,2\r\n",
    '"name","number"\n"a","1"\n./b,2\n'])
def test_columns_are_found_whatever_their_order_and_their_spaces(
        tmp_path: Path, content: str) -> None:
    assert [(row.name, row.index) for row in _read(tmp_path / "l.csv", content)] \
        == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("content, told", [
    ("name;number\na;1\n", "lacks name, number: .*separated by commas instead of semicolons"),
    ("name\tnumber\na\t1\n", "instead of tabs"), ("name,label\na,1\n", "lacks number: "),
    ("name,number,number\na,1,2\n", "has number twice"), ("", "lacks name, number"),
    ("name,number\na,1\n,2\n", "line 3 of l.csv gives '' the number '2'"),
    ("name,number\na,\u0663\n", "whole number of 0 or more"), ("name,number\na,1.0\n", "'1.0'"),
    ("name,number\na\n", "line 2 of l.csv has '' for a"), ("name,number\na,-1\n", "'-1'"),
    ('name,number\n"a"b,1\n', "cannot be read after line 2"),
    ('name,number\n"a,1\nb,2\n', "cannot be read after line 3"),
    ("name,number\n" + "a" * 200_000 + ",1\n", "field larger than field limit"),
    ("name,number\n".encode("utf-16"), "is not UTF-8 text"), (b"name,number\n\xff,1", "not UTF-8"),
])
def test_every_damage_is_one_sentence(tmp_path: Path, content: bytes | str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        _read(tmp_path / "l.csv", content)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_named_with_its_option(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(DataError, match="must be a readable file.*--list"):
            read_rows(path, KIND)


def test_a_name_reaches_the_terminal_without_control_characters(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _read(tmp_path / "l.csv", "name,number\n\x1b[2Jwell,x\n")
    assert "\x1b" not in str(caught.value) and "for '\\x1b[2Jwell'" in str(caught.value)
    assert shown("caf\u00e9 1.png") == "caf\u00e9 1.png"


def test_a_plain_path_has_no_dots_and_no_doubled_slashes() -> None:
    assert [plain(name) for name in ("./a", "a//b", "a/./b", "a/", "a", "")] \
        == ["a", "a/b", "a/b", "a", "a", ""]


def test_a_name_is_found_by_itself_first_and_never_where_two_look_alike() -> None:
    composed, apart = (unicodedata.normalize(form, "\u00e9\u00e8") for form in ("NFC", "NFD"))
    mixed = "\u00e9e\u0300"
    assert Names([composed]).find(apart) == composed and Names([apart]).find(composed) == apart
    both = Names([composed, apart])
    assert (both.find(composed), both.find(apart), both.find(mixed)) == (composed, apart, None)
    assert Names(["d/a"]).find("d\\a") == "d/a" and Names(["d\\a", "d/a"]).find("d\\a") == "d\\a"


def test_targets_are_found_in_any_spelling_and_each_image_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,target\n./d//a.png,2\ncafe\u0301.png,1\n", encoding="utf-8")
    rule = parse_rule(f"file:{path}").loaded()
    targets = rule.choose(["caf\u00e9.png", "d/a.png"], torch.tensor([0, 0]), torch.zeros(2, 3),
                          seed=0)
    assert targets.tolist() == [1, 2]
    for again in ("d/a.png,2", "d\\a.png,0", "caf\u00e9.png,0"):
        path.write_text(f"image,target\n./d//a.png,2\ncafe\u0301.png,1\n{again}\n",
                        encoding="utf-8")
        with pytest.raises(DataError, match="lines [23] and 4 of t.csv both name"):
            parse_rule(f"file:{path}").loaded()
