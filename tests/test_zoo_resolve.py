"""From a name to a classifier: every source of weights, and every way it can go wrong."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sanrobust.errors import (
    CheckpointError, DownloadError, UnknownNameError, UsageError,
)
from sanrobust.files import sha256_file
from sanrobust.zoo import catalog, resolve, store
from sanrobust.zoo.checkpoint import METADATA_KEY, save_safetensors
from sanrobust.zoo.digest import state_digest
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.entry import Entry, Remote
from sanrobust.zoo.facts import facts as facts_of
from sanrobust.zoo.forms import imagenet_config, small_config
from sanrobust.zoo.resolve import create_model, fetch, verify
from zoo_files import Request, ban_network, official_layout, serving, trained

SMALL_NAME = "san10-pair.untrained-small"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ban_network(monkeypatch)
    monkeypatch.setenv("SANROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalog, "WEIGHTS_FOLDER", tmp_path / "weights")
    return tmp_path / "home"


def pickled(state: dict[str, torch.Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, stream)
    return stream.getvalue()


def remote(url: str, sha256: str | None = None) -> Entry:
    return replace(catalog.find(SMALL_NAME), tag="in1k",
                   weights=Remote(url, sha256, "https://a.page"))


def pack_digits(damage: bool = False) -> None:
    path = catalog.WEIGHTS_FOLDER / "san10-pair.digits.safetensors"
    save_safetensors(trained(), path)
    row = {"sha256": sha256_file(path), "top1": 98.2, "n": 450, "command": "sanrobust train"}
    (catalog.WEIGHTS_FOLDER / "digits.json").write_text(json.dumps({"san10-pair": row}))
    if damage:
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize("arch", catalog.PAPER_ORDER)
def test_every_architecture_gives_finite_logits(arch: str) -> None:
    model = create_model(arch, tag="untrained-small")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert (model.name, model.num_classes) == (f"{arch}.untrained-small", 10)


def test_untrained_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = create_model(SMALL_NAME)
    state = torch.get_rng_state()
    second = create_model(SMALL_NAME)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.weights_digest == second.weights_digest


def test_untrained_weights_depend_on_their_seed() -> None:
    entry = catalog.find(SMALL_NAME)
    other = replace(entry, weights=replace(entry.weights, seed=1))
    digests = {resolve._from_entry(each, {}, None).weights_digest for each in (entry, other)}
    assert len(digests) == 2


def test_an_untrained_model_takes_any_number_of_classes() -> None:
    assert create_model(SMALL_NAME, num_classes=3)(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_overrides_replace_preprocessing_unless_they_are_none() -> None:
    model = create_model(SMALL_NAME, overrides={"img_size": 48, "crop_pct": None,
                                                "interpolation": "bicubic"})
    expected = replace(catalog.SMALL_PREPROCESSING, img_size=48, interpolation="bicubic")
    assert model.preprocessing == expected


def test_overrides_of_mean_and_std_reach_the_normalisation() -> None:
    pixels = torch.rand(1, 3, 32, 32)
    usual, other = (create_model(SMALL_NAME, overrides=overrides)
                    for overrides in ({}, {"mean": (0.1, 0.1, 0.1), "std": (2.0, 2.0, 2.0)}))
    assert not torch.allclose(usual(pixels), other(pixels))


def test_packaged_weights_load_when_their_hash_agrees() -> None:
    pack_digits()
    model = create_model("san10-pair", tag="digits")
    assert model.weights_digest == state_digest(trained())
    assert model.preprocessing.img_size == 32


def test_packaged_weights_with_one_changed_byte_are_refused() -> None:
    pack_digits(damage=True)
    with pytest.raises(CheckpointError, match=r"must have the recorded SHA-256.*install"):
        create_model("san10-pair.digits")


def test_packaged_weights_that_are_gone_are_refused() -> None:
    pack_digits()
    (catalog.WEIGHTS_FOLDER / "san10-pair.digits.safetensors").unlink()
    with pytest.raises(CheckpointError, match="install sanrobust again"):
        create_model("san10-pair.digits")


def test_unpublished_weights_say_so_and_what_to_type() -> None:
    with pytest.raises(CheckpointError, match=r"published no ResNet weights: use torchvision/"
                       r"resnet50 .* sanrobust zoo add resnet38\.in1k FILE"):
        create_model("resnet38")


def test_stored_weights_are_found_by_name(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "a.pth")
    store.add("san10-pair.mine", tmp_path / "a.pth", like=catalog.find(SMALL_NAME))
    model = create_model("san10-pair", tag="mine")
    assert (model.name, model.weights_digest) == ("san10-pair.mine", state_digest(trained()))


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_stored_weights_that_changed_or_went_are_refused(tmp_path: Path, home: Path,
                                                         damage: str) -> None:
    torch.save(trained(), tmp_path / "a.pth")
    store.add("san10-pair.mine", tmp_path / "a.pth", like=catalog.find(SMALL_NAME))
    kept = home / "san10-pair.mine.safetensors"
    if damage == "remove":
        kept.unlink()
    else:
        save_safetensors(trained(seed=3), kept)
    with pytest.raises(CheckpointError, match="sanrobust zoo add san10-pair.mine FILE"):
        create_model("san10-pair.mine")


def test_a_checkpoint_of_the_authors_loads_under_the_bare_name(tmp_path: Path) -> None:
    state = official_layout(imagenet_config("san10-patch"), tmp_path / "model_best.pth")
    model = create_model("san10-patch", checkpoint=tmp_path / "model_best.pth")
    assert model.weights_digest == state_digest(state)
    assert (model.num_classes, model.name) == (1000, "san10-patch.model_best")


def test_a_checkpoint_brings_its_number_of_classes(tmp_path: Path) -> None:
    torch.save(trained(small_config("san10-pair", 4)), tmp_path / "a.pth")
    assert create_model(SMALL_NAME, checkpoint=tmp_path / "a.pth").num_classes == 4


def test_a_checkpoint_of_another_depth_names_the_model_to_type(tmp_path: Path) -> None:
    torch.save(trained(imagenet_config("san15-pair")), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="it fits san15-pair: type --model san15-pair"):
        create_model("san10-pair", checkpoint=tmp_path / "a.pth")


def test_the_model_that_the_message_names_can_be_typed(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        create_model("san15-pair", checkpoint=tmp_path / "a.pth")
    named = str(caught.value).rpartition("--model ")[2]
    assert create_model(named, checkpoint=tmp_path / "a.pth").num_classes == 10


def test_a_number_of_classes_against_the_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="10 classes where the model has 3"):
        create_model(SMALL_NAME, checkpoint=tmp_path / "a.pth", num_classes=3)


def test_a_number_of_classes_against_an_entry_is_refused() -> None:
    pack_digits()
    with pytest.raises(UsageError, match="must be 10 for san10-pair.digits"):
        create_model("san10-pair.digits", num_classes=3)


def test_a_file_of_our_own_training_tells_a_bare_name_its_form(tmp_path: Path) -> None:
    facts = json.dumps(facts_of(catalog.find(SMALL_NAME)))
    save_safetensors(trained(), tmp_path / "best", {METADATA_KEY: facts})
    model = create_model("san10-pair", checkpoint=tmp_path / "best")
    assert model.preprocessing == catalog.SMALL_PREPROCESSING


def test_models_from_elsewhere_come_through_the_same_door(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("<html>")
    with pytest.raises(CheckpointError, match="is a web page"):
        create_model("timm/resnet18", checkpoint=tmp_path / "a.pth")


def test_a_mistyped_name_is_answered() -> None:
    with pytest.raises(UnknownNameError, match="did you mean san10-pair"):
        create_model("san01-pair")


def test_published_weights_are_fetched_once_and_held_to_their_first_hash(home: Path) -> None:
    asked: list[str] = []
    content = [pickled(trained())]

    def answer(request: Request) -> None:
        asked.append(request.path)
        request.send(200, content[0])

    told: list[str] = []
    with serving(answer) as url:
        path = fetch(remote(url), say=told.append)
        assert fetch(remote(url), say=told.append) == path
        assert len(asked) == 1
        assert len(told) == 1 and "gives no hash; recorded SHA-256" in told[0]
        assert store.pinned(path) == hashlib.sha256(content[0]).hexdigest()
        path.unlink()
        content[0] = pickled(trained(seed=9))
        with pytest.raises(DownloadError, match="must have the SHA-256"):
            fetch(remote(url))
    assert path.parent == home / "downloads"
    assert not path.exists()


def test_a_fetched_file_that_changed_on_disk_is_refused() -> None:
    with serving(lambda request: request.send(200, pickled(trained()))) as url:
        path = fetch(remote(url))
        path.write_bytes(pickled(trained(seed=9)))
        with pytest.raises(CheckpointError, match=f"remove {path} and run again"):
            fetch(remote(url))


def test_a_fetched_file_must_have_the_published_hash() -> None:
    with serving(lambda request: request.send(200, pickled(trained()))) as url:
        with pytest.raises(DownloadError, match="must have the SHA-256 0000"):
            fetch(remote(url, "0" * 64))


def test_only_a_file_that_loads_is_ever_recorded() -> None:
    with serving(lambda request: request.send(200, pickled({"w": torch.ones(1)}))) as url:
        with pytest.raises(DownloadError, match=r"removed because .*sanrobust zoo add "
                           r"san10-pair\.in1k FILE"):
            fetch(remote(url))
    path = store.download_path("san10-pair.in1k")
    assert not path.exists()
    assert store.pinned(path) is None


def test_published_weights_become_a_classifier() -> None:
    with serving(lambda request: request.send(200, pickled(trained()))) as url:
        model = resolve._from_entry(remote(url), {}, None)
    assert isinstance(model, Classifier)
    assert model.weights_digest == state_digest(trained())


def test_only_published_weights_can_be_fetched() -> None:
    with pytest.raises(UsageError, match="must have a published address"):
        fetch(catalog.find(SMALL_NAME))


def test_no_network_means_a_download_error_that_shows_the_way(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(DownloadError, match=r"open https://drive\.google\.com/\S+ in a browser, "
                       r"save the file and type: sanrobust zoo add san10-pair\.in1k FILE"):
        create_model("san10-pair")


def test_verify_passes_what_is_whole(tmp_path: Path) -> None:
    pack_digits()
    torch.save(trained(), tmp_path / "a.pth")
    store.add("san10-pair.mine", tmp_path / "a.pth", like=catalog.find(SMALL_NAME))
    for name in ("san10-pair.digits", "san10-pair.mine", SMALL_NAME):
        found = verify(catalog.find(name))
        assert (found.name, found.status) == (name, "ok"), found


def test_verify_tells_absent_from_failed(home: Path) -> None:
    assert verify(catalog.find("resnet26.in1k")).status == "absent"
    assert verify(catalog.find("san10-pair.in1k")).status == "absent"
    pack_digits(damage=True)
    found = verify(catalog.find("san10-pair.digits"))
    assert (found.status, "recorded SHA-256" in found.detail) == ("failed", True)


def test_verify_notices_tensors_swapped_together_with_their_hash(tmp_path: Path,
                                                                 home: Path) -> None:
    torch.save(trained(), tmp_path / "a.pth")
    store.add("san10-pair.mine", tmp_path / "a.pth", like=catalog.find(SMALL_NAME))
    kept = home / "san10-pair.mine.safetensors"
    save_safetensors(trained(seed=3), kept)
    index = json.loads((home / "index.json").read_text())
    index["entries"]["san10-pair.mine"]["sha256"] = sha256_file(kept)
    (home / "index.json").write_text(json.dumps(index))
    found = verify(catalog.find("san10-pair.mine"))
    assert (found.status, "recorded digest" in found.detail) == ("failed", True)


def test_what_is_shown_otherwise_than_in_training_is_told() -> None:
    name = "resnet26.untrained-small"
    assert create_model(name).assumed == ""
    assert create_model(name, overrides={"img_size": 32}).assumed == ""
    assert create_model(name, overrides={"img_size": 64}).assumed == (
        f"{name} is shown images otherwise than in its training: img_size 64 for 32")
