"""Every attack on networks of the zoo: no bit depends on batches, orders or parts of the images."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
import torch
from attack_tester import AttackTester, assert_rows_equal
from torch import Tensor, nn

from sanrobust.attacks.catalog import ATTACKS
from sanrobust.attacks.norms import NORMS
from sanrobust.data.datasets import open_dataset
from sanrobust.data.loader import batches
from sanrobust.device import exact
from sanrobust.steady import FixedSizeBatches
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.resolve import create_model

IMAGES, SINGLES = 64, 8
CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor, list[str]]


@cache
def network(name: str) -> nn.Module:
    """The network as a command computes it: folded, or in passes of one size."""
    classifier = create_model(name)
    made = accelerate(classifier, CPU)
    return FixedSizeBatches(made.classifier, made.pass_size(classifier.preprocessing.img_size, CPU))


@cache
def digits() -> Batch:
    images = open_dataset("digits", root=None, num_samples=IMAGES)
    preprocessing = create_model("resnet26.digits").preprocessing
    batch = next(iter(batches(images, preprocessing, plan=[list(range(IMAGES))], workers=0)))
    return batch.pixels, batch.labels, list(batch.ids)


def plans() -> Iterator[list[Sequence[int]]]:
    """Batches of one (of some images) and seven, two other orders, and two halves."""
    shuffled = random.Random(0).sample(range(IMAGES), IMAGES)
    yield [[place] for place in range(0, IMAGES, IMAGES // SINGLES)]
    yield [range(start, min(start + 7, IMAGES)) for start in range(0, IMAGES, 7)]
    yield [range(IMAGES)[::-1]]
    yield [shuffled]
    yield [range(0, IMAGES, 2), range(1, IMAGES, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS.names())
@pytest.mark.parametrize("name", ["san10-pair.digits", "san10-patch.digits", "resnet26.digits"])
@pytest.mark.parametrize("attack", ATTACKS.own_names())
@exact(threads=1)
def test_nothing_depends_on_the_batch(attack: str, name: str, norm: str) -> None:
    tester, model = AttackTester.of(attack, norm), network(name)
    pixels, labels, ids = digits()
    whole = tester.attack(model, pixels, labels, ids)
    for plan in plans():
        for part in plan:
            places = list(part)
            found = tester.attack(model, pixels[places], labels[places], [ids[at] for at in places])
            for result, expected in zip(found, whole, strict=True):
                assert_rows_equal(result, expected, places)
