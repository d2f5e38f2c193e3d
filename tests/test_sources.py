"""Whatever holds the images, the records are those of the folder of the same images."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, WeightedRandomSampler

import sanrobust
from conftest import Command
from source_files import (IDS, IMAGES, LABELS, NAMED, SOURCES, Items, as_tensor, floats, folder,
                          levels, pack, png, samples, tar)
from sanrobust.choices import DataConfig
from sanrobust.data.datasets import open_dataset
from sanrobust.errors import SanrobustError

needs_hf = pytest.mark.skipif(importlib.util.find_spec("datasets") is None,
                              reason="the optional package datasets is not installed")
MODEL = "grey_models:right"


def measured(data: Any, out: Path, *, targets: str) -> pd.DataFrame:
    """Return the records of both experiments without what names the run and the set."""
    rotated = sanrobust.rotate(MODEL, data=data, out=out)
    attacked = sanrobust.pgd(MODEL, data=data, out=out, targets=targets, budgets=[(8, 4, 2)])
    frames = [result.records.drop(columns=["run_id", "data"]) for result in (rotated, attacked)]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    place = tmp_path_factory.mktemp("folder")
    images = folder(place / "val")
    return {targets: measured(images, place / targets, targets=targets)
            for targets in ("random", "none")}


def in_order(records: pd.DataFrame, ids: dict[str, str]) -> pd.DataFrame:
    """Return records with the folder's ids, in one order."""
    renamed = records.assign(image=[ids.get(each, each) for each in records["image"]])
    keys = ["image", *(each for each in ("view", "eps") if each in renamed)]
    return renamed.sort_values(keys, kind="stable").reset_index(drop=True)


@pytest.mark.parametrize("source", SOURCES)
def test_records_are_those_of_the_folder(source: str, of_folder: dict[str, pd.DataFrame],
                                         tmp_path: Path) -> None:
    # Targets are drawn by the images' names; without names, they cannot be the same.
    targets = "random" if source in NAMED else "none"
    here = measured(SOURCES[source](tmp_path), tmp_path / "o", targets=targets)
    ids = {} if source in NAMED else {str(place): name for place, name in enumerate(IDS)}
    assert set(here["image"]) == (set(IDS) if source in NAMED else set(ids))
    pd.testing.assert_frame_equal(in_order(here, ids), in_order(of_folder[targets], {}))


@needs_hf
@pytest.mark.parametrize("form", ["saved", "splits", "named", "table"])
def test_records_of_a_hugging_face_dataset_are_those_of_the_folder(
        form: str, of_folder: dict[str, pd.DataFrame], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    features = datasets.Features(id=datasets.Value("string"), img=datasets.Image(),
                                 cls=datasets.ClassLabel(names=[f"c{each}" for each in range(6)]))
    table = datasets.Dataset.from_dict(
        {"id": list(IDS), "cls": LABELS,
         "img": [{"bytes": png(image), "path": None} for image in IMAGES]}, features=features)
    data: Any = table
    if form == "saved":
        table.save_to_disk(tmp_path / "saved")
        data = str(tmp_path / "saved")
    elif form == "splits":
        both = datasets.DatasetDict(train=table.select([0]), test=table)
        both.save_to_disk(tmp_path / "saved")
        data = tmp_path / "saved"
    elif form == "named":
        (tmp_path / "hub").mkdir()
        table.to_parquet(tmp_path / "hub" / "test-00000.parquet")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        data = f"hf:{tmp_path / 'hub'}:test"
    here = measured(data, tmp_path / "o", targets="random")
    pd.testing.assert_frame_equal(in_order(here, {}), in_order(of_folder["random"], {}))


def test_an_archive_has_the_ids_labels_and_digest_of_its_folder(tmp_path: Path) -> None:
    there = open_dataset(str(folder(tmp_path / "val")), root=None)
    here = open_dataset(tar(tmp_path), root=None)
    order = [[ref.id for ref in here.refs].index(ref.id) for ref in there.refs]
    assert here.take(order).refs == there.refs and here.take(order).digest == there.digest
    assert not list(tmp_path.glob("c*"))


def test_a_part_of_an_archive_or_of_arrays_is_a_part_of_the_records(tmp_path: Path) -> None:
    for data in (tar(tmp_path), (levels(), LABELS)):
        whole = sanrobust.rotate(MODEL, data=data, out=tmp_path / "o").records
        part = sanrobust.rotate(MODEL, data=DataConfig(data=data, num_samples=3),
                                out=tmp_path / "o").records
        assert part["image"].nunique() == 3 and set(part["image"]) < set(whole["image"])


def test_workers_read_archives_and_datasets_too(tmp_path: Path) -> None:
    for data in (tar(tmp_path), Items()):
        alone, helped = (sanrobust.rotate(MODEL, data=data, out=tmp_path / str(workers),
                                          workers=workers).records for workers in (0, 2))
        pd.testing.assert_frame_equal(alone, helped)


def test_a_name_stands_in_the_table_and_chooses_the_classes(tmp_path: Path) -> None:
    held = DataConfig(data=(levels(), LABELS), name="mine")
    assert sanrobust.rotate(MODEL, data=held, out=tmp_path).table["data"].tolist() == ["mine"]
    digits = DataConfig(data=(floats(), LABELS), name="digits")
    result = sanrobust.rotate("resnet26", data=digits, out=tmp_path)
    assert result.table["model"].tolist() == ["resnet26.digits"]


def test_a_loader_with_a_part_of_its_dataset_gives_that_part_in_order(tmp_path: Path) -> None:
    loader = DataLoader(Items(), sampler=SubsetRandomSampler([5, 1, 2]))
    part = sanrobust.rotate(MODEL, data=loader, out=tmp_path)
    same = sanrobust.rotate(MODEL, data=Subset(Items(), [1, 2, 5]), out=tmp_path)
    pd.testing.assert_frame_equal(part.records, same.records)
    assert part.records["label"].unique().tolist() == [1, 2, 5]


def test_float_pixels_of_the_models_size_are_its_input(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    images = torch.rand(3, 3, 32, 32)

    class Network(torch.nn.Module):
        default_cfg = dict(input_size=(3, 32, 32), crop_pct=0.5, mean=(0., 0., 0.),
                           std=(1., 1., 1.))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(pixels.detach().clone())
            return pixels.mean((2, 3))

    sanrobust.rotate(Network(), data=(images, [0, 1, 2]), out=tmp_path)
    assert any(torch.equal(each[:3], images) for each in seen)


class Random:
    """Gives another image every time."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> tuple[object, int]:
        return torch.full((3, 32, 32), random.random()), place


def test_a_dataset_that_changes_its_images_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(SanrobustError, match="another image than at the start"):
        sanrobust.rotate(MODEL, data=Random(), out=tmp_path)


class Streamed:
    def __iter__(self) -> Any:
        return iter([(IMAGES[0], 0)] * 3)


@pytest.mark.parametrize(("data", "words"), [
    (["a", "b"], "data must be a name, a path"),
    ((levels(),), "data must be a name, a path"),
    ({"images": levels()}, "data must be a name, a path"),
    ((levels(), LABELS[:3]), "has 3 for 8 images"),
    ((levels(), torch.eye(8)), r"are torch.float32 \(8, 8\) for 8 images"),
    ((levels(), [0.5] * 8), "has 0.5"),
    ((levels(), [-1] * 8), "has -1"),
    ((levels(), [True] * 8), "has True"),
    ((levels() / 255.0, LABELS), r"float64 \(8, 40, 40, 3\): turn them into float32"),
    ((levels().astype("float32"), LABELS), "where channels come before"),
    ((floats() * 2 - 1, LABELS), "values from -0.9"),
    ((floats() * float("nan"), LABELS), "from nan"),
    ((floats().half(), LABELS), r"float16 .*: turn them"),
    ((floats().bfloat16(), LABELS), "bfloat16"),
    ((floats().to_sparse(), LABELS), "images must be uint8"),
    ((levels()[:, :3, :, :], LABELS), "channels may be the second or the last"),
    ((levels()[0], LABELS), "has 8 for 40 images"),
    ((levels()[:0], []), r"\(0, 40, 40, 3\)"),
    ((levels(), LABELS, ["a"] * 8), "1 different ids"),
    ((levels(), LABELS, [f"\n{each}" for each in range(8)]), "control characters"),
    ((levels(), [9] * 8), "labels must lie in 0..5"),
    ((torch.rand(8, 3, 50, 50), LABELS), "between 8-bit levels"),
    (Items(lambda _: "no"), "item 0 has 'no'"),
    (Items(lambda image: as_tensor(image) * 3), "values from"),
    (Items(label=lambda label: "cat"), "that of item 0 is 'cat'"),
    (Items(label=lambda label: torch.tensor([1, 2])), "that of item 0 is"),
    ([1, 2], "images must be"),
    (3, "--data must be text"),
    (DataLoader(Items(), sampler=WeightedRandomSampler([1.0] * 8, 8)), "WeightedRandomSampler"),
    (DataLoader(Items(), batch_sampler=[[0, 1]]), "chosen by a list"),
])
def test_what_is_no_set_of_images_is_refused(data: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(SanrobustError, match=words):
        sanrobust.rotate(MODEL, data=data, out=tmp_path / "o")
    assert not (tmp_path / "o").exists() or not list((tmp_path / "o").glob("*.csv"))


def test_a_stream_must_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanrobust.data.held.MOST_HELD", 5000)
    with pytest.raises(SanrobustError, match="its first 2 images take more"):
        sanrobust.rotate(MODEL, data=Streamed(), out=tmp_path)


def test_options_of_folders_are_refused_for_other_places(command: Command, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("file,class_index\n")
    for option in ("--labels", "--class-map"):
        done = command("rotate", "-m", MODEL, "--data", tar(tmp_path), option, tmp_path / "l.csv")
        assert done.exit_code == 2 and "which has labels" in done.output
    with pytest.raises(SanrobustError, match="held by a program"):
        sanrobust.rotate(MODEL, data=DataConfig(data=(levels(), LABELS), labels="l.csv"))


def test_names_that_lead_out_and_links_are_harmless(tmp_path: Path, command: Command) -> None:
    members = samples()
    linked = pack(tmp_path / "l.tar", {**members, "c0/x.png": None, "c0/notes.txt": b"x",
                                       "c9/alone.cls": b"1", "._c0/0.png": b"x"})
    images = open_dataset(str(linked), root=None)
    assert sorted(ref.id for ref in images.refs) == sorted(IDS)
    assert images.left_out == (
        "left out 1 member that is neither image nor label (c0/notes.txt)",
        "left out 1 label without an image (c9/alone)",
        "left out 1 member that is no plain file (c0/x.png)")
    for name in ("../c0/0.png", "/c0/0.png", "c0/../../0.png"):
        wrong = pack(tmp_path / "w.tar", {name: png(IMAGES[0])})
        done = command("rotate", "-m", MODEL, "--data", wrong, "--out", tmp_path / "o")
        assert done.exit_code == 3 and "paths below a folder" in done.output
