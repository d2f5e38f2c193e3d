"""What the functions return: the table, the records of its runs alone, and the images made."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import sanrobust
from grey_models import CLASSES, folders
from sanrobust.errors import UsageError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folders(tmp_path / "val", list(range(CLASSES)))


def test_records_are_those_of_the_runs_asked_for(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    sanrobust.rotate("grey_models:noisy", data=images, out=out)
    result = sanrobust.rotate(["grey_models:right", "grey_models:wrong"], data=images, out=out)
    assert result.records["model"].unique().tolist() == result.table["model"].tolist()
    assert result.records["run_id"].nunique() == 2 and len(result.runs) == 2
    assert set(result.records["image"]) == {f"c{each}/{each}.png" for each in range(CLASSES)}
    right = result.records[result.records["model"] == "grey_models:right"]
    assert len(right) == len(result.records) / 2
    again = sanrobust.rotate(["grey_models:right", "grey_models:wrong"], data=images, out=out)
    pd.testing.assert_frame_equal(again.records, result.records)


def test_a_result_reads_as_its_table_and_says_where_the_rest_is(images: Path,
                                                                tmp_path: Path) -> None:
    result = sanrobust.rotate("grey_models:right", data=images, out=tmp_path / "o")
    assert result["none_top1"].tolist() == result.table["none_top1"].tolist() == [100.0]
    assert list(result[["model", "n"]].columns) == ["model", "n"]
    assert "grey_models:right" in repr(result) and "<table" in result._repr_html_()
    assert all(path.exists() for path in result.files)
    with pytest.raises(AttributeError, match="result.table"):
        result.to_csv  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        len(result)  # type: ignore[arg-type]


@pytest.mark.parametrize("budgets", [[(8, 4, 2)], [(8, 4, 2), (4, 1, 2)]])
def test_adversarial_images_are_read_when_they_are_indexed(
        budgets: list[tuple[int, int, int]], images: Path, tmp_path: Path) -> None:
    result = sanrobust.pgd("grey_models:right", data=images, budgets=budgets, out=tmp_path / "o",
                           save_adversarial=True, random_start=True)
    made = result.adversarial
    shape = (CLASSES, 3, 32, 32)
    assert made.shape == (shape if len(budgets) == 1 else (2, *shape))
    parts = [made] if len(budgets) == 1 else [made[0], made[1]]
    for part, (eps, _, _) in zip(parts, budgets):
        assert isinstance(part, sanrobust.result.Adversarial) and part.budgets[0][0] == eps
        pixels = part[:]
        assert isinstance(pixels, torch.Tensor) and pixels.dtype == torch.float32
        assert pixels.shape == shape and torch.equal(part[2:4], pixels[2:4])
        assert torch.equal(part[-1], pixels[-1]) and len(list(part)) == CLASSES
        clean = torch.tensor([(10 + 15 * label) / 255 for label in part.labels])
        change = (pixels - clean.view(-1, 1, 1, 1)).abs().amax()
        assert 0 < change <= eps / 255 + 1e-6
    if len(budgets) == 2:
        assert torch.equal(made[:], torch.stack([made[0][:], made[1][:]]))
    attacked = result.records[result.records["eps"] == budgets[0][0]]
    assert list(parts[0].ids) == attacked["image"].tolist()
    replayed = sanrobust.rotate("grey_models:right", data=(parts[0][:], parts[0].labels),
                                out=tmp_path / "o")
    assert replayed["none_top1"].tolist() == [100 * float(
        (attacked["adv_pred"] == attacked["label"]).mean())]


def test_images_that_were_not_saved_or_are_of_several_runs_are_refused(images: Path,
                                                                       tmp_path: Path) -> None:
    models = ["grey_models:right", "grey_models:wrong"]
    with pytest.raises(UsageError, match="save_adversarial=True"):
        sanrobust.pgd(models[0], data=images, out=tmp_path / "o").adversarial
    with pytest.raises(UsageError, match="there are 2"):
        sanrobust.pgd(models, data=images, out=tmp_path / "o").adversarial


def test_progress_is_shown_where_it_is_asked_for(images: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    sanrobust.rotate("grey_models:right", data=images, out=tmp_path / "o")
    assert capsys.readouterr() == ("", "")
    sanrobust.rotate("grey_models:wrong", data=images, out=tmp_path / "o", progress=True)
    told = capsys.readouterr()
    assert not told.out and "rotate grey_models:wrong: 6/6 images" in told.err
