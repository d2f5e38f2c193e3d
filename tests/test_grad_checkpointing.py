"""Blocks that are computed again for their gradients: the same bits, and less that is kept."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch
from attention_cases import needs_native
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from train_sets import few

import sanrobust.timm  # noqa: F401
from sanrobust.errors import UsageError
from sanrobust.kernels.backends import use_backend
from sanrobust.training import job as module
from sanrobust.training.job import TrainingJob, train_models
from sanrobust.training.recipes import Recipe
from sanrobust.zoo.blocks import BlockNetwork, Blocks
from sanrobust.zoo.build import build
from sanrobust.zoo.forms import small_config

NETWORKS = ("san10-pair", "san10-patch", "san10-scalar", "resnet26", "sasa26")


def _pair(name: str) -> tuple[BlockNetwork, BlockNetwork]:
    """Return a network as it is, and a copy that computes its blocks again."""
    torch.manual_seed(0)
    network = build(small_config(name))
    assert isinstance(network, BlockNetwork)
    again = deepcopy(network)
    again.set_grad_checkpointing()
    return network, again


def _trained(network: nn.Module) -> list[Tensor]:
    """Return gradients, running statistics and logits of two passes."""
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        logits = network(pixels)
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    return [logits, *network.buffers(), *(each.grad for each in network.parameters()
                                          if each.grad is not None)]


@pytest.mark.parametrize("backend", ("native", "reference"))
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_running_statistics_keep_their_bits(name: str, backend: str) -> None:
    with use_backend(backend):
        kept, again = map(_trained, _pair(name))
    assert len(kept) == len(again) and all(map(torch.equal, kept, again))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_taken_twice_and_differentiated_with_the_same_bits(name: str) -> None:
    found = []
    for network in _pair(name):
        pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        pixels.requires_grad_()
        loss = nn.functional.cross_entropy(network(pixels), torch.arange(4))
        loss.backward(retain_graph=True)
        grad, = torch.autograd.grad(loss, pixels, create_graph=True)
        grad.square().sum().backward()
        found.append([*network.buffers(), *(each.grad for each in network.parameters())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", ("san10-pair", "resnet26"))
def test_a_compiled_network_makes_the_same(name: str) -> None:
    results = [_trained(torch.compile(network, backend="aot_eager")) for network in _pair(name)]
    for kept, again in zip(*results):
        torch.testing.assert_close(again, kept)


@needs_native
@pytest.mark.parametrize("name", ("san10-pair", "san10-patch"))
def test_a_block_is_computed_again_by_the_backend_that_computed_it(name: str) -> None:
    _, network = _pair(name)
    with use_backend("reference"):
        loss = network(torch.rand(2, 3, 32, 32)).sum()
    loss.backward()
    assert all(each.grad is not None for each in network.parameters())


def test_threads_leave_a_network_its_own_buffers() -> None:
    _, network = _pair("resnet26")
    before = dict(network.named_buffers())

    def step() -> None:
        network(torch.rand(2, 3, 32, 32)).sum().backward()

    threads = [Thread(target=step) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(each is before[name] for name, each in network.named_buffers())


def test_only_inputs_of_blocks_are_kept() -> None:
    sizes = []
    for network in _pair("san10-pair"):
        found: dict[int, int] = {}

        def keep(tensor: Tensor, found: dict[int, int] = found) -> Tensor:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        before = {each.data_ptr() for each in network.parameters()}
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = network(torch.rand(8, 3, 32, 32))
        sizes.append(sum(size for at, size in found.items() if at not in before))
        logits.sum().backward()
    assert sizes[1] < 0.6 * sizes[0]


def test_buffers_are_the_same_objects_afterwards_also_when_a_block_fails() -> None:
    class Failing(nn.BatchNorm1d):
        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("the second time")
            return super().forward(input)

    blocks = Blocks(Failing(3))
    blocks.recompute = True
    owned = dict(blocks[0].named_buffers())
    moved = blocks(torch.rand(4, 3, requires_grad=True))
    mean = blocks[0].running_mean.clone()
    with pytest.raises(RuntimeError, match="the second time"):
        moved.sum().backward()
    assert all(each is owned[name] for name, each in blocks[0].named_buffers())
    assert torch.equal(blocks[0].running_mean, mean)


def test_evaluation_and_frozen_passes_compute_once() -> None:
    calls = []
    blocks = Blocks(nn.Linear(3, 3))
    blocks.recompute = True
    blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        blocks(torch.rand(2, 3))
    blocks.eval()(torch.rand(2, 3)).sum().backward()
    assert len(calls) == 2
    blocks.train()(torch.rand(2, 3)).sum().backward()
    assert len(calls) == 4


def test_weights_are_the_same_and_one_training_may_go_on_as_the_other(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_sets", lambda source: (few(64), 10))
    job = TrainingJob(models=("resnet26",), out=tmp_path / "kept", device="cpu",
                      recipe=Recipe(img_size=16, epochs=1, batch_size=32, ema=0.9))
    kept, = train_models(job)
    again, = train_models(replace(job, out=tmp_path / "again", grad_checkpointing=True))
    one, other = load_file(kept), load_file(again)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    before = kept.stat().st_mtime_ns
    train_models(replace(job, grad_checkpointing=True))  # is trained already
    assert kept.stat().st_mtime_ns == before


def test_a_network_without_blocks_is_refused(tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_sets", lambda source: (few(64), 10))
    monkeypatch.setattr(module, "build", lambda architecture: nn.Linear(3, 10))
    with pytest.raises(UsageError, match="resnet26 has none"):
        train_models(TrainingJob(models=("resnet26",), out=tmp_path, device="cpu",
                                 grad_checkpointing=True))


def test_the_option_reaches_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from sanrobust.cli.train import train
    jobs: list[TrainingJob] = []
    monkeypatch.setattr(module, "train_models", lambda job, reporter: jobs.append(job))
    train.main(["--grad-checkpointing"], standalone_mode=False)
    train.main([], standalone_mode=False)
    assert [job.grad_checkpointing for job in jobs] == [True, False]


def test_timm_calls_it_by_its_own_name() -> None:
    model = timm.create_model("san10_pair_small")
    model.set_grad_checkpointing()
    assert [part.recompute for part in model.modules() if isinstance(part, Blocks)] == [True] * 5
    model.set_grad_checkpointing(enable=False)
    assert not any(part.recompute for part in model.modules() if isinstance(part, Blocks))
