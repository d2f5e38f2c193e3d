"""How often an attack waits for its device: each time it reads a number of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sanrobust.attacks.budget import Budget
from sanrobust.attacks.pgd import pgd
from sanrobust.attacks.targets import TargetRule
from sanrobust.data.loader import Batch
from sanrobust.experiments.rotation import RotationMeasurement, RotationSettings
from sanrobust.steady import FixedSizeBatches
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.resolve import create_model

# Ways to Python of tensors that have several numbers; `_local_scalar_dense` is that of one.
READERS = ("tolist", "cpu", "numpy")
IMAGES = 3


class _Scalars(TorchDispatchMode):
    """Counts the single numbers that are read."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Run something and return how often it read from a tensor."""
    found = []

    def counted(name: str) -> Callable[..., Any]:
        read = getattr(Tensor, name)

        def reading(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(name)
            return read(self, *args, **kwargs)

        return reading

    @contextmanager
    def watching() -> Iterator[_Scalars]:
        with monkeypatch.context() as patched, _Scalars() as scalars:
            for name in READERS:
                patched.setattr(Tensor, name, counted(name))
            yield scalars

    def count(run: Callable[[], object]) -> int:
        found.clear()
        with watching() as scalars:
            run()
        return scalars.count + len(found)

    return count


def classifier(*, folded: bool = False) -> torch.nn.Module:
    plain = create_model("resnet26.digits" if not folded else "san10-pair.digits")
    cpu = torch.device("cpu")
    model: Classifier = accelerate(plain, cpu).classifier if folded else plain
    return FixedSizeBatches(model, 2)


def images() -> Tensor:
    return torch.rand(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_every_way_of_reading_is_counted(reads: Callable[[Callable[[], object]], int]) -> None:
    numbers = torch.arange(3)
    for read in (lambda: bool(numbers[0]), lambda: numbers[0].item(), lambda: numbers.tolist(),
                 lambda: float(numbers[1]), lambda: numbers.cpu(), lambda: numbers.numpy()):
        assert reads(read) == 1
    assert reads(lambda: numbers * 2 + numbers.sum()) == 0


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_a_step_of_the_attack_reads_one_number(
        reads: Callable[[Callable[[], object]], int], loss: str, random_start: bool,
        folded: bool) -> None:
    model, pixels = classifier(folded=folded), images()

    def attack(iters: int) -> None:
        pgd(model, pixels, torch.zeros(IMAGES, dtype=torch.int64), ["a", "b", "c"],
            budgets=[Budget(8, 2, iters)], targets=TargetRule("least-likely"), loss=loss,
            random_start=random_start)

    attack(1)
    few, many = reads(lambda: attack(2)), reads(lambda: attack(7))
    assert many - few <= 5


def test_a_pass_of_a_classifier_reads_nothing(
        reads: Callable[[Callable[[], object]], int]) -> None:
    model, pixels = classifier(), images()
    model(pixels)

    def step() -> None:
        leaf = pixels.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)

    assert reads(step) == 0


def test_a_view_without_finite_logits_is_refused() -> None:
    with pytest.raises(Exception, match="logits must be finite"):
        RotationMeasurement(RotationSettings()).measure(
            lambda pixels: pixels.mean((2, 3)) / 0,
            Batch(("a", "b", "c"), torch.zeros(IMAGES, dtype=torch.int64), images()))
