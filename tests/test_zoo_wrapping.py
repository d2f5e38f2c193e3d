"""Checkpoints as trainers leave them: wrapped, averaged, with several heads, of other numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from conftest import Command
from sanrobust.errors import CheckpointError
from sanrobust.zoo import store
from sanrobust.zoo.build import build
from sanrobust.zoo.checkpoint import read_weights
from sanrobust.zoo.digest import state_digest
from sanrobust.zoo.external import create_external
from sanrobust.zoo.fit import load_strict
from sanrobust.zoo.resolve import create_model
from zoo_files import SMALL, trained

State = dict[str, Any]
NAME = "san10-pair.untrained-small"


def prefixed(prefix: str) -> Callable[[State], object]:
    return lambda state: {"state_dict": {prefix + key: value for key, value in state.items()}}


def doubled(state: State) -> State:
    return {key: value * 2 for key, value in state.items()}


FORMS: dict[str, Callable[[State], object]] = {
    "ddp of compiled": prefixed("module._orig_mod."),
    "compiled ddp": prefixed("_orig_mod.module."),
    "ddp twice": prefixed("module.module."),
    "lightning": prefixed("model."),
    "lightning of compiled": prefixed("model._orig_mod."),
    "a part of another name": prefixed("net.encoder."),
    "params": lambda state: {"params": state},
    "averaged by swa": lambda state: {
        "n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}},
    "nested average": lambda state: {"ema": {"module": state, "decay": 0.99}},
    "params_ema": lambda state: {"params_ema": state},
    "deepspeed": lambda state: {"module": state, "optimizer": {"lr": 1}},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_load_however_a_trainer_wrapped_them(tmp_path: Path, form: str) -> None:
    state, path = trained(), tmp_path / "a.pth"
    torch.save(FORMS[form](state), path)
    assert create_model(NAME, checkpoint=str(path)).weights_digest == state_digest(state)
    outside = torchvision.models.squeezenet1_1(num_classes=3).state_dict()
    torch.save(FORMS[form](outside), path)
    found = create_external("torchvision/squeezenet1_1", checkpoint=path)
    assert found.weights_digest == state_digest(outside) and found.num_classes == 3
    torch.save(FORMS[form](state), path)
    store.add("san10-pair.mine", path, like=_entry(), overwrite=True)
    assert store.records()["san10-pair.mine"].state_digest == state_digest(state)


def _entry() -> Any:
    from sanrobust.zoo import catalog
    return catalog.find(NAME)


BOTH: dict[str, Callable[[State, State], object]] = {
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "basicsr": lambda raw, ema: {"params": raw, "params_ema": ema},
    "torchvision": lambda raw, ema: {"model": raw, "model_ema": {
        "n_averaged": torch.tensor(2), **{f"module.{key}": each for key, each in ema.items()}}},
    "nested": lambda raw, ema: {"model": raw, "ema": {"module": ema}},
    "one table": lambda raw, ema: {"state_dict": {
        **{f"model.{key}": value for key, value in raw.items()},
        **{f"ema_model.module.{key}": value for key, value in ema.items()}}},
}


@pytest.mark.parametrize("form", BOTH)
def test_of_raw_and_averaged_weights_one_is_taken_and_said(tmp_path: Path, form: str) -> None:
    raw, path, said = trained(), tmp_path / "a.pth", list[str]()
    torch.save(BOTH[form](raw, doubled(raw)), path)
    first = create_model(NAME, checkpoint=path, say=said.append)
    second = create_model(NAME, checkpoint=path, use_ema=True, say=said.append)
    assert first.weights_digest == state_digest(raw)
    assert second.weights_digest == state_digest({
        key: value.to(raw[key].dtype) for key, value in doubled(raw).items()})
    assert "took the raw ones" in said[0] and "with --use-ema" in said[0]
    assert "took the averaged ones" in said[1] and "without --use-ema" in said[1]
    assert first.source != second.source != str(path)


def test_averaged_weights_that_are_not_there_are_refused(tmp_path: Path,
                                                         command: Command) -> None:
    torch.save({"state_dict": trained(), "epoch": 3}, tmp_path / "a.pth")
    result = command("rotate", "-m", NAME, "--checkpoint", tmp_path / "a.pth", "--use-ema")
    assert result.exit_code == 4
    assert "has none (state_dict, epoch): leave out --use-ema" in result.output
    result = command("rotate", "-m", NAME, "--use-ema")
    assert result.exit_code == 2 and "--use-ema must come with --checkpoint" in result.output


def test_a_prefix_is_cut_only_where_every_name_then_fits(tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in trained().items()}
    torch.save({**state, "criterion.weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="must fit san10-pair"):
        create_model(NAME, checkpoint=tmp_path / "a.pth")


def test_a_wrapped_state_of_another_model_is_recognised(tmp_path: Path) -> None:
    torch.save(prefixed("model.")(trained()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="type --model san10-pair.untrained-small"):
        create_model("resnet26.untrained-small", checkpoint=tmp_path / "a.pth")


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_all_heads_of_a_network_follow_the_files_number_of_classes(tmp_path: Path,
                                                                   arch: str) -> None:
    network = torchvision.models.get_model(arch, weights=None, num_classes=3, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    assert create_external(f"torchvision/{arch}", checkpoint=tmp_path / "a.pth").num_classes == 3


@pytest.mark.parametrize(("change", "said"), [
    (lambda value: value.to(torch.int8), "is of type int8 where the model has float32"),
    (lambda value: value.bool(), "is of type bool"),
    (lambda value: torch.complex(value, value), "is of type complex64"),
    (lambda value: value.double() * 1e300, "values too large for float32"),
])
def test_weights_of_another_kind_of_number_are_refused(change: Callable[[Tensor], Tensor],
                                                       said: str) -> None:
    state = {**trained(), "fc.weight": change(torch.ones(10, 32 * 4))}
    state["fc.weight"] = change(trained()["fc.weight"])
    with pytest.raises(CheckpointError, match=said):
        load_strict(build(SMALL), state, name="x", source="file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(dtype: torch.dtype) -> None:
    network = build(SMALL)
    load_strict(network, {key: value.to(dtype) if value.is_floating_point() else value.double()
                          for key, value in trained().items()}, name="x", source="file")
    assert network.state_dict()["fc.weight"].dtype == torch.float32


@pytest.mark.parametrize(("extra", "said"), [
    ({"foo.num_batches_tracked": torch.tensor(0)}, "unexpected"),
    ({"bn0.num_batches_tracked": torch.zeros(5).long()}, "another shape"),
    ({"fc.weight": torch.nested.nested_tensor([torch.zeros(3), torch.zeros(5)])}, "nested"),
    ({"fc.weight": torch.zeros(1, 1).expand(2 ** 40, 1)}, "repeats few values"),
])
def test_odd_tensors_are_a_sentence(tmp_path: Path, extra: State, said: str) -> None:
    torch.save({**trained(), **extra}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=said):
        create_model(NAME, checkpoint=tmp_path / "a.pth")


@pytest.mark.parametrize(("content", "said"), [
    (b"\x80\x02}K\x01" + b"\x85" * 200_000 + b"K\x02s.", "torch.save did not write it"),
    (b"\x80\x02}K\x01" + b"\x85q\x00h\x00\x86" * 90_000 + b"K\x02s.", "did not write it"),
    (b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (4 << 30).to_bytes(5, "little") + b"\x85R.",
     "wants to run builtins.bytearray"),
    (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latiX1\x86R.", "is damaged"),
])
def test_a_pickle_that_would_end_the_process_is_a_sentence(tmp_path: Path, content: bytes,
                                                           said: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_weights(tmp_path / "a.pth")


class Extra(nn.Module):
    """A network whose state dict holds a plain value."""

    default_cfg = {"input_size": (3, 8, 8)}

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.version = nn.Linear(3, 3), 1

    def get_extra_state(self) -> object:
        return {"version": self.version}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.mean((2, 3)))
        return logits


def test_extra_state_is_loaded_from_a_file(tmp_path: Path) -> None:
    network = Extra()
    network.version = 5
    torch.save({"state_dict": network.state_dict()}, tmp_path / "a.pth")
    other = Extra()
    load_strict(other, read_weights(tmp_path / "a.pth").state, name="x", source="file")
    assert other.version == 5
    torch.save({**network.state_dict(), "_extra_state": 3}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="stopped with: 'int' object"):
        load_strict(other, read_weights(tmp_path / "a.pth").state, name="x", source="file")
