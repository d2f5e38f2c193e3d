"""Attacked images are saved exactly, whatever stops the run, and no number depends on it."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import sanrobust
from conftest import Command
from grey_models import CLASSES, folders
from sanrobust.data.decode import ImageError
from sanrobust.data.pixels import decode_exactly, encode, most_bytes
from sanrobust.data.saved import FILE_NAME, read_index, read_source, stem
from sanrobust.errors import UnknownNameError, UsageError
from sanrobust.runs import Run, find_runs
from test_table_sequences import pretend_it_was_killed, stop_after

LABELS = [*range(CLASSES)] * 2
PGD = ("pgd", "-m", "grey_models:right", "--data", "val")
SAVE = "--save-adversarial"
L2 = ("--norm", "l2", "--eps", "0.5", "--step", "0.2", "--iters", "3")


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folders(tmp_path / "val", LABELS)


def run_in(out: str, number: int = -1) -> Run:
    return find_runs(Path(out), "pgd").runs[number]


def saved(out: str) -> dict[str, bytes]:
    """Every file of saved images, by its name."""
    folder = run_in(out).folder / "adversarial"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def index(out: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(saved(out)["index.csv"].decode())))


def on_grid(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 8, 8), generator=generator).float() / 255


@pytest.mark.parametrize(("pixels", "suffix"), [
    (on_grid(), "png"),
    (torch.zeros(3, 8, 8), "png"),
    (torch.ones(3, 8, 8), "png"),
    (on_grid() * 0.999, "npz"),
    (torch.where(torch.arange(192).reshape(3, 8, 8) == 77, torch.tensor(1e-7), on_grid()), "npz"),
    (on_grid().nextafter(torch.tensor(0.5)), "npz"),
])
def test_pixels_come_back_as_they_were(pixels: torch.Tensor, suffix: str) -> None:
    kind, content = encode(pixels)
    assert kind == suffix and len(content) <= most_bytes(8)
    again = decode_exactly(content, kind, 8)
    assert again.dtype == torch.float32 and torch.equal(again, pixels)
    assert encode(pixels)[1] == content
    if kind == "npz":
        assert np.array_equal(np.load(io.BytesIO(content))["pixels"], pixels.numpy())


def test_every_level_of_8_bits_is_the_one_that_a_decoded_image_has() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(3, 16, 16)
    assert torch.equal(decode_exactly(encode(levels.float().div(255))[1], "png", 16),
                       levels.float().div(255))


def npz(array: object, name: str = "pixels", **more: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name: np.asarray(array), **more})  # type: ignore[arg-type]
    return stream.getvalue()


def png(mode: str, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


def lying(shape: str) -> bytes:
    """An array that claims a shape and holds little."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("pixels.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
                         + header.encode() + b"\0" * 8)
    return stream.getvalue()


@pytest.mark.parametrize(("suffix", "content", "words"), [
    ("png", b"", "no PNG"),
    ("png", png("RGB", (8, 8))[:45], "damaged"),
    ("png", png("RGB", (9, 8)), "9x8"),
    ("png", png("L", (8, 8)), "mode L"),
    ("png", png("RGBA", (8, 8)), "mode RGBA"),
    ("png", npz(np.zeros((3, 8, 8), np.float32)), "no PNG"),
    ("npz", b"PK\x03\x04", "damaged"),
    ("npz", png("RGB", (8, 8)), "damaged"),
    ("npz", npz(np.zeros((3, 8, 9), np.float32)), "where float32"),
    ("npz", npz(np.zeros((3, 8, 8), np.float64)), "float64"),
    ("npz", npz(np.zeros((3, 8, 8), np.uint8)), "uint8"),
    ("npz", npz(np.asfortranarray(np.zeros((3, 8, 8), np.float32))), "where float32"),
    ("npz", npz(np.full((3, 8, 8), {"a": 1}, dtype=object)), "object"),
    ("npz", npz(np.zeros((3, 8, 8), np.float32), "other"), "damaged"),
    ("npz", npz(np.full((3, 8, 8), np.nan, np.float32)), "outside"),
    ("npz", npz(np.full((3, 8, 8), 1.5, np.float32)), "outside"),
    ("npz", npz(np.full((3, 8, 8), -1e-9, np.float32)), "outside"),
    ("npz", lying("(3, 8, 8)"), "has not the 768 bytes"),
    ("npz", lying("(3, 100000, 100000)"), "100000"),
], ids=lambda value: value.decode("latin-1")[:0] if isinstance(value, bytes) else value)
def test_what_holds_no_such_pixels_is_refused(suffix: str, content: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode_exactly(content, suffix, 8)


@pytest.mark.parametrize("image", ["a", "../../etc/passwd", "/", "", "a\0b", "é\udcff", "x" * 9999])
def test_the_name_of_a_file_holds_nothing_of_that_of_its_image(image: str) -> None:
    assert FILE_NAME.fullmatch(f"{stem(image, 3)}.png")
    assert stem(image, 1) != stem(image, 2) and stem(image, 1) != stem(f"{image}.", 1)


def test_the_index_says_what_the_records_say(command: Command) -> None:
    result = command(*PGD, SAVE, "--out", "o")
    assert result.exit_code == 0, result.output
    assert f"adversarial images are in {run_in('o').folder / 'adversarial'}" in result.output
    files, rows = saved("o"), index("o")
    records = run_in("o").records().sort_values(["image", "iters"], kind="stable")
    assert {row["file"] for row in rows} == set(files) - {"index.csv", "source.json"}
    assert len(rows) == len(records) == 2 * len(LABELS)
    for row, (_, record) in zip(rows, records.iterrows(), strict=True):
        assert hashlib.sha256(files[row["file"]]).hexdigest() == row["sha256"]
        assert row["file"].endswith(".png")
        assert row["image"] == record["image"]
        for name in ("label", "target", "iters", "clean_pred", "adv_pred"):
            assert int(row[name]) == record[name]
        for name in ("eps", "step", "linf", "l2"):
            assert np.float32(row[name]) == np.float32(record[name])
        assert row["hit"] == str(record["hit"])
        # The largest change, counted on the files themselves.
        clean = np.asarray(Image.open(Path("val") / row["image"]).resize((32, 32)), int)
        change = np.asarray(Image.open(io.BytesIO(files[row["file"]])), int) - clean
        assert abs(change).max() == float(row["linf"])


def test_nothing_else_depends_on_whether_they_are_saved(command: Command) -> None:
    one, other = command(*PGD, "--out", "o"), command(*PGD, SAVE, "--out", "p")
    assert one.stdout == other.stdout and run_in("o").name == run_in("p").name
    pd.testing.assert_frame_equal(run_in("o").records(), run_in("p").records())
    assert run_in("o").spec == run_in("p").spec and not saved("o")
    for name in ("pgd.csv", "pgd.md", "pgd.tex"):
        assert (Path("o") / name).read_bytes() == (Path("p") / name).read_bytes()


@pytest.mark.parametrize("attack", [
    (), L2, ("--attack", "apgd-ce", "--eps", "8", "--iters", "3"), ("--targets", "fixed:2"),
    ("--attack", "autoattack", "--version", "apgd-ce,square", "--queries", "20", "--eps", "4,8")],
    ids=lambda words: " ".join(words[:2]))
def test_batches_and_workers_change_no_byte(command: Command, attack: tuple[str, ...]) -> None:
    for out, how in (("o", ("-b", "5")), ("p", ("-b", "1", "-j", "1")), ("q", ("-b", "64"))):
        assert command(*PGD, *attack, SAVE, *how, "--out", out).exit_code == 0
    assert saved("o") == saved("p") == saved("q") and len(saved("o")) > 10
    kinds = {Path(row["file"]).suffix for row in index("o")}
    assert kinds == {".npz"} if attack == L2 else ".png" in kinds


def journals() -> list[Path]:
    """The journals of the processes that saved images, the latest last."""
    return sorted((run_in("o").folder / "adversarial").glob("*.part"),
                  key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("before", [1, 6, 11])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(command: Command, before: int) -> None:
    command(*PGD, SAVE, "--out", "whole")
    again = (*PGD, SAVE, "-b", "1", "--out", "o")
    for images in (before, 1):
        with pytest.MonkeyPatch.context() as stopping:
            stop_after(stopping, images)
            command(*again)
        assert "index.csv" not in saved("o") and journals()
        pretend_it_was_killed(Path("o"), "pgd")  # the last records are lost, their files are not
    torn = journals()[-1]
    torn.write_bytes(torn.read_bytes()[:-20])
    (torn.parent / f"{stem('gone', 1)}.npz").write_bytes(b"left by a measurement made otherwise")
    (torn.parent / ".sanrobust-x.tmp").write_bytes(b"torn")
    result = command(*again)
    # The image whose entry was torn had no records, since these come behind it.
    assert result.exit_code == 0, result.output
    assert saved("o") == saved("whole")


def test_records_without_their_images_are_not_passed_over(command: Command) -> None:
    command(*PGD, "--out", "o")
    refused = command(*PGD, SAVE, "--out", "o")
    assert refused.exit_code == 2 and "Traceback" not in refused.output
    assert f"holds the records of {len(LABELS)} images whose adversarial ones" in refused.output
    assert "--fresh" in refused.output and not saved("o")
    assert command(*PGD, SAVE, "--fresh", "--out", "o").exit_code == 0
    assert len(run_in("o").records()) == len(index("o")) == 2 * len(LABELS)
    complete = command(*PGD, SAVE, "--out", "o")
    assert complete.exit_code == 0 and "already complete" in complete.output
    victim = run_in("o").folder / "adversarial" / index("o")[3]["file"]
    victim.unlink()
    refused = command(*PGD, SAVE, "--out", "o")
    assert refused.exit_code == 2 and "records of 1 image whose" in refused.output
    assert command(*PGD, "--out", "o").exit_code == 0


def test_a_run_that_goes_on_without_saving_says_so(command: Command) -> None:
    with pytest.MonkeyPatch.context() as stopping:
        stop_after(stopping, 3)
        command(*PGD, SAVE, "-b", "1", "--out", "o")
    result = command(*PGD, "--out", "o")
    assert result.exit_code == 0 and "without it the rest is not saved" in result.output
    assert "index.csv" not in saved("o")
    assert command(*PGD, SAVE, "--out", "o").exit_code == 2


def test_lost_records_are_made_again_with_their_images(command: Command) -> None:
    command(*PGD, SAVE, "-b", "3", "--out", "o")
    before = saved("o")
    for chunk in (run_in("o").folder / "records").iterdir():
        chunk.unlink()
    result = command(*PGD, SAVE, "--out", "o")
    assert result.exit_code == 0 and "have lost their records" in result.output
    assert saved("o") == before


def test_images_that_failed_or_have_no_target_have_no_file(command: Command) -> None:
    Path("val/c1/1.png").write_bytes(b"no image")
    result = command(*PGD, SAVE, "--targets", "fixed:3", "--max-failed", "1", "--out", "o")
    assert result.exit_code == 0, result.output
    named = {row["image"] for row in index("o")}
    assert "c1/1.png" not in named and not any(name.startswith("c3/") for name in named)
    assert len(named) == len(LABELS) - 1 - LABELS.count(3)
    folder = run_in("o").folder / "adversarial"
    assert len(read_index(folder, read_source(folder))) == len(named)


def test_images_measured_once_more_join_the_others(command: Command) -> None:
    again = ("pgd", "-m", "grey_models:one_fails", "--data", "val", "--max-failed", "1", "--out",
             "o")
    command(*again, SAVE)
    assert len(index("o")) == 2 * (len(LABELS) - LABELS.count(5))
    before = saved("o")
    assert command(*again, SAVE, "--retry-failed").exit_code == 0
    assert saved("o") == before


def test_from_python_and_where_there_is_nothing_to_save(command: Command) -> None:
    sanrobust.pgd("grey_models:right", data="val", out="o", save_adversarial=True)
    assert len(index("o")) == 2 * len(LABELS)
    assert "save_adversarial" in str(sanrobust.pgd.__doc__)
    assert "save_adversarial" not in str(sanrobust.rotate.__doc__)
    with pytest.raises(UnknownNameError, match="keyword"):
        sanrobust.rotate("grey_models:right", data="val", out="o", save_adversarial=True)
    with pytest.raises(UsageError, match="True or False"):
        sanrobust.pgd("grey_models:right", data="val", out="o", save_adversarial="yes")
    assert command("rotate", SAVE, "--data", "val").exit_code == 2


def test_a_disk_that_refuses_a_file_is_told_and_costs_nothing(
        command: Command) -> None:
    with pytest.MonkeyPatch.context() as stopping:
        stop_after(stopping, 3)
        command(*PGD, SAVE, "-b", "1", "--out", "o")
    (journal,) = journals()
    content = journal.read_bytes()
    journal.unlink()
    journal.mkdir()
    refused = command(*PGD, SAVE, "--out", "o")
    assert refused.exit_code in (2, 3, 6) and "Traceback" not in refused.output
    journal.rmdir()
    journal.write_bytes(content)
    assert command(*PGD, SAVE, "--out", "o").exit_code == 0
    assert len(index("o")) == 2 * len(LABELS)
