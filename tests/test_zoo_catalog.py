"""The catalogue as data: every entry complete, every wrong name answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanrobust.errors import CheckpointError, UnknownNameError
from sanrobust.zoo import catalog, store
from sanrobust.zoo.build import parameter_shapes
from sanrobust.zoo.entry import Entry, Packaged, Remote, Stored, Unpublished, Untrained
from sanrobust.zoo.forms import imagenet_config, small_config
from zoo_files import SMALL, official_layout, trained

# Zhao, Jia and Koltun 2020, Table 9, "no rotation".
REPORTED = {
    "resnet26": (73.6, 91.7), "resnet38": (76.0, 93.0), "resnet50": (76.9, 93.5),
    "san10-pair": (74.9, 92.1), "san15-pair": (76.6, 93.1), "san19-pair": (76.9, 93.4),
    "san10-patch": (77.1, 93.5), "san15-patch": (78.0, 93.9), "san19-patch": (78.2, 93.9),
}
DIGITS = {arch: {"sha256": "0" * 64, "top1": 98.2, "n": 450, "command": "sanrobust train"}
          for arch in ("san10-pair", "resnet50")}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalog, "WEIGHTS_FOLDER", tmp_path / "weights")


def put_digits(text: str) -> None:
    catalog.WEIGHTS_FOLDER.mkdir()
    (catalog.WEIGHTS_FOLDER / "digits.json").write_text(text)


def test_reading_the_catalogue_loads_no_torch() -> None:
    code = "import sys; from sanrobust.zoo import catalog; catalog.names(); " \
           "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_unique_and_in_the_papers_order() -> None:
    names = catalog.names()
    assert len(set(names)) == len(names) >= 27
    assert names[:9] == tuple(f"{arch}.in1k" for arch in catalog.PAPER_ORDER)


@pytest.mark.parametrize("arch", catalog.PAPER_ORDER)
def test_in1k_entries_report_the_papers_accuracy(arch: str) -> None:
    entry = catalog.find(f"{arch}.in1k")
    assert (entry.top1, entry.top5) == REPORTED[arch]
    assert entry.architecture == imagenet_config(arch)
    assert "Table 9" in entry.reference


@pytest.mark.parametrize("arch", [arch for arch in catalog.PAPER_ORDER if "san" in arch])
def test_san_weights_are_those_of_the_authors(arch: str) -> None:
    entry = catalog.find(arch)
    assert isinstance(entry.weights, Remote)
    assert entry.weights.url.startswith("https://drive.usercontent.google.com/download?id=1")
    assert entry.weights.page.startswith("https://drive.google.com/drive/folders/")
    assert (entry.weights.sha256, entry.licence) == (None, "MIT")


def test_addresses_of_published_weights_differ() -> None:
    urls = [entry.weights.url for entry in catalog.entries() if isinstance(entry.weights, Remote)]
    assert len(set(urls)) == len(urls) >= 6


def test_every_entry_that_is_listed_is_found_by_its_name() -> None:
    put_digits(json.dumps(DIGITS))
    for entry in catalog.entries():
        assert catalog.find(entry.name) == entry


def test_an_entry_of_an_unknown_architecture_is_refused_before_it_can_be_listed() -> None:
    with pytest.raises(UnknownNameError, match="no architecture named 'zzz': see the list res"):
        Entry("zzz", "in1k", imagenet_config("resnet26"), Untrained())


@pytest.mark.parametrize("arch", ["resnet26", "resnet38", "resnet50"])
def test_resnet_weights_are_said_to_be_unpublished(arch: str) -> None:
    weights = catalog.find(f"{arch}.in1k").weights
    assert isinstance(weights, Unpublished)
    assert f"sanrobust zoo add {arch}.in1k FILE" in weights.reason


@pytest.mark.parametrize("arch", catalog.PAPER_ORDER)
def test_untrained_entries_exist_in_both_forms(arch: str) -> None:
    large, small = catalog.find(f"{arch}.untrained"), catalog.find(f"{arch}.untrained-small")
    assert large.weights == small.weights == Untrained(seed=0)
    assert large.architecture == imagenet_config(arch)
    assert small.architecture == small_config(arch, 10)
    assert (small.preprocessing.img_size, small.preprocessing.resize_size) == (32, 32)


def test_every_entry_can_be_built_by_its_architecture() -> None:
    for entry in catalog.entries():
        assert parameter_shapes(entry.architecture)["fc.weight"][0] == (
            1000 if entry.data == "imagenet" else 10)


def test_digits_entries_come_from_the_packaged_table() -> None:
    put_digits(json.dumps(DIGITS))
    entry = catalog.find("san10-pair.digits")
    assert entry.weights == Packaged("san10-pair.digits.safetensors", "0" * 64)
    assert (entry.top1, entry.data, entry.reference) == (98.2, "digits", "sanrobust train")
    assert entry.architecture == SMALL
    assert [name for name in catalog.names() if name.endswith(".digits")] == [
        "san10-pair.digits", "resnet50.digits"]


@pytest.mark.parametrize("text", [
    "{", "[]", '{"san10-pair": {}}', '{"san10-pair": 3}', json.dumps({"san9": DIGITS["resnet50"]})])
def test_a_damaged_packaged_table_asks_for_a_new_installation(text: str) -> None:
    put_digits(text)
    with pytest.raises(CheckpointError, match="install sanrobust again"):
        catalog.names()


def test_a_bare_architecture_takes_the_tag_that_is_wanted() -> None:
    assert catalog.find("san10-pair").name == "san10-pair.in1k"
    assert catalog.find("san10-pair", tag="untrained").name == "san10-pair.untrained"
    assert catalog.find("san10-pair.in1k", tag="untrained").name == "san10-pair.in1k"


@pytest.mark.parametrize(("typed", "meant"), [
    ("san01-pair", "san10-pair"), ("san51-patch", "san15-patch"), ("SAN10-Pair", "san10-pair"),
    ("resnet-50", "resnet50"), ("san10pair", "san10-pair"), ("san01-pair.in1k", "san10-pair.in1k"),
    ("resnet62.untrained", "resnet26.untrained"),
])
def test_a_mistyped_name_is_answered_with_the_closest(typed: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"did you mean {meant}\?"):
        catalog.find(typed)


def test_an_unknown_tag_is_answered_with_those_that_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"none tagged 'untraind': did you mean "
                       r"san10-pair\.untrained\? the tags are in1k, untrained, untrained-small"):
        catalog.find("san10-pair.untraind")


def test_added_weights_are_found_after_the_zoos_own(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "a.pth")
    like = catalog.find("san10-pair.untrained-small")
    entry = store.add("san10-pair.mine", tmp_path / "a.pth", like=like).entry
    assert catalog.find("san10-pair.mine") == entry
    assert catalog.names()[-1] == "san10-pair.mine"
    with pytest.raises(UnknownNameError, match="did you mean san10-pair.mine"):
        catalog.find("san10-pair.mime")


def test_added_in1k_weights_keep_the_reported_accuracy(tmp_path: Path) -> None:
    before = catalog.names()
    official_layout(imagenet_config("san10-pair"), tmp_path / "model_best.pth")
    store.add("san10-pair.in1k", tmp_path / "model_best.pth")
    entry = catalog.find("san10-pair")
    assert isinstance(entry.weights, Stored)
    assert (entry.top1, entry.licence) == (74.9, "MIT")
    assert catalog.names() == before


def test_the_packages_own_models_do_not_need_a_readable_index() -> None:
    store.home().mkdir()
    (store.home() / "index.json").write_text("{")
    assert catalog.find("san10-pair.untrained").tag == "untrained"
