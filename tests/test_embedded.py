"""The weights in the package are what they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import photo_page
from sanrobust.data.datasets import open_dataset
from sanrobust.data.loader import batches
from sanrobust.validity.catalog import LINES
from sanrobust.zoo.catalog import PAPER_ORDER, WEIGHTS_FOLDER, find
from sanrobust.zoo.resolve import create_model, verify

RESULTS = Path(__file__).parent.parent / "results"


@pytest.mark.parametrize("arch", PAPER_ORDER)
def test_weights_reach_the_listed_accuracy_on_images_they_never_saw(arch: str) -> None:
    entry = find(arch, tag="digits")
    model = create_model(entry.name)
    images = open_dataset("digits", root=None)
    hits = 0
    for batch in batches(images, entry.preprocessing, plan=[range(len(images.refs))], workers=0):
        with torch.no_grad():
            hits += int((model(batch.pixels).argmax(1) == batch.labels).sum())
    # One image may change sides where another machine rounds differently.
    assert entry.top1 is not None
    assert abs(hits - entry.top1 * len(images.refs) / 100) <= 1.001
    assert entry.top1 >= 95


@pytest.mark.parametrize("arch", PAPER_ORDER)
def test_weights_verify(arch: str) -> None:
    found = verify(find(arch, tag="digits"))
    assert found.status == "ok", found.detail


def test_all_weights_together_stay_small() -> None:
    sizes = {path.name: path.stat().st_size for path in WEIGHTS_FOLDER.glob("*.safetensors")}
    digits = [size for name, size in sizes.items() if name.endswith(".digits.safetensors")]
    assert len(digits) == 9 and sum(digits) < 10_000_000
    assert sum(sizes.values()) - sum(digits) < 15_000_000


PHOTOGRAPHS = [path.name.removesuffix(".safetensors")
               for path in sorted(WEIGHTS_FOLDER.glob("*.cifar10*.safetensors"))]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_weights_of_photographs_are_listed_with_what_training_came_to(name: str) -> None:
    arch, _, tag = name.partition(".")
    listed = json.loads((WEIGHTS_FOLDER / f"{tag}.json").read_text())[arch]
    entry = find(name)
    assert verify(entry).status == "ok" and entry.top1 == listed["top1"] and listed["n"] == 10_000
    last = pd.read_csv(RESULTS / "cifar10" / "training" / f"{name}.csv").iloc[-1]
    assert (last["epoch"], round(last["train_top1"], 2)) == (listed["epochs"],
                                                             listed["train_top1"])
    assert last["top1"] == pytest.approx(entry.top1, abs=1e-3)
    assert listed["command"].startswith(f"sanrobust train --model {arch} --data photos/cifar10 ")
    model = create_model(name)
    assert model.classes is not None and model.classes[3] == "cat"


def test_the_page_of_photographs_says_what_training_came_to() -> None:
    page = (RESULTS / "cifar10" / "README.md").read_text("utf-8")
    rows = [f"| `{arch}.{path.stem}` | {size(f'{arch}.{path.stem}')} | {facts['epochs']} | "
            f"{facts['train_top1']:.2f} | {facts['top1']:.2f} |"
            for path in WEIGHTS_FOLDER.glob("cifar10*.json")
            for arch, facts in json.loads(path.read_text()).items()]
    assert len(rows) == len(PHOTOGRAPHS) and all(row in page for row in rows)
    assert page.count("| `") == len(rows)


def size(name: str) -> int:
    return sum(each.numel() for each in create_model(name).network.parameters())


def test_the_page_of_photographs_takes_the_claims_as_the_tables_have_them() -> None:
    page = (RESULTS / "cifar10" / "README.md").read_text("utf-8")
    assert photo_page.page() in page


def test_the_committed_check_is_of_all_networks_of_photographs() -> None:
    table = pd.read_csv(RESULTS / "cifar10" / "check" / "check.csv")
    assert sorted(set(table["model"])) == sorted(PHOTOGRAPHS)
    assert set(table["verdict"]) == {"ok"} and len(table) == len(PHOTOGRAPHS) * len(LINES)


@pytest.mark.parametrize("name", ["rotation", "pgd"])
@pytest.mark.parametrize(("folder", "tag", "images"), [
    ("", "digits", 451), ("cifar10", "cifar10", 10_000)])
def test_the_committed_tables_were_made_with_these_weights(
        folder: str, tag: str, images: int, name: str) -> None:
    table = pd.read_csv(RESULTS / folder / f"{name}.csv")
    digests = {arch: create_model(f"{arch}.{tag}").weights_digest for arch in PAPER_ORDER}
    assert dict(zip(table["model"], table["weights"], strict=False)) == {
        f"{arch}.{tag}": digest for arch, digest in digests.items()}
    assert set(table["n"]) == {images}


def test_each_file_is_listed_with_the_command_that_makes_it() -> None:
    listed = json.loads((WEIGHTS_FOLDER / "digits.json").read_text())
    assert list(listed) == list(PAPER_ORDER)
    for arch, facts in listed.items():
        assert facts["command"] == f"sanrobust train --model {arch} --data digits"
