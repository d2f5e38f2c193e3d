"""The suite on the command line: what is measured, printed and written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from sanrobust.cli import main
from sanrobust.experiments.pgd import PGD

SMALL = "-m resnet26 --num-samples 8 -b 5"


def typed(folder: Path, words: str) -> str:
    done = CliRunner().invoke(main, [*words.split(), "--out", str(folder / "o")])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "o" / "pgd.csv")


def test_autoattack_says_what_it_did_and_what_broke_the_images(tmp_path: Path) -> None:
    words = f"pgd --attack autoattack --eps 4,16 --iters 2 --queries 8 {SMALL}"
    told = typed(tmp_path, words)
    assert "Robustness to AutoAttack." in told and "s. rate" not in told
    assert "each on the images that are still right; 8 queries of Square" in told
    table = rows(tmp_path)
    shares = table[[name for name in table if name.startswith("by_")]].fillna(0).sum(axis=1)
    assert (shares + table["top1_adv"]).tolist() == pytest.approx([100, 100])
    assert table["top1_adv"].tolist()[1] < table["top1_adv"].tolist()[0]
    written = (tmp_path / "o" / "pgd.md").read_text("utf-8")
    assert "What broke the images" in written and "apgd-dlr" not in written  # no member of it
    records = pd.read_parquet(next((tmp_path / "o" / "runs").glob("*/records")))
    broken = records[records["broken_by"].notna() & (records["broken_by"] != "clean")]
    assert (broken["adv_pred"] != broken["label"]).all() and (broken["broken_at"] >= 0).all()
    assert (broken["loss"].map(len) == broken["broken_at"] + 1)[
        broken["broken_by"].str.startswith("apgd")].all()
    assert "already complete" in typed(tmp_path, words)


def test_a_row_is_the_same_alone_and_among_others(tmp_path: Path) -> None:
    typed(tmp_path, f"pgd --attack apgd-ce --eps 2,6 --iters 3 {SMALL}")
    several = rows(tmp_path)
    typed(tmp_path, f"pgd --attack apgd-ce --eps 6 --iters 3 {SMALL}")
    alone = rows(tmp_path)
    kept = ["eps", "top1_adv", "mean_linf"]
    assert several[several["eps"] == 6][kept].values.tolist() == alone[kept].values.tolist()


def test_three_radii_are_a_curve_and_two_norms_two_panels(tmp_path: Path) -> None:
    told = typed(tmp_path, f"pgd --attack fgsm --eps 1,4,9 {SMALL}")
    assert "pgd_radii.svg" in told
    typed(tmp_path, f"pgd --attack bim --norm l2 --eps 0.1,0.5,1 --iters 3 {SMALL}")
    told = typed(tmp_path, "table pgd")
    assert "BIM l2" in told and "in L-inf and in the pixel range [0, 1] in L2" in told
    drawn = (tmp_path / "o" / "pgd_radii.svg").read_text("utf-8")
    assert "resnet26.digits, FGSM" in drawn and "resnet26.digits, BIM l2" in drawn
    table = rows(tmp_path)
    assert table["mean_l2"].notna().tolist() == (table["norm"] == "l2").tolist()


@pytest.mark.parametrize(("row", "fits"), [
    ({"attack": "pgd", "targets": "random"}, True), ({}, True),
    ({"attack": "pgd", "targets": "none"}, False), ({"attack": "autoattack"}, False),
    ({"attack": "pgd", "targets": "random", "norm": "l2"}, False),
    ({"attack": "pgd", "targets": "random", "momentum": 0.9}, False)])
def test_the_papers_rows_stand_beside_its_own_attack_alone(row: dict[str, object], fits: bool
                                                           ) -> None:
    assert PGD.reference is not None and PGD.reference.fits(row) is fits
