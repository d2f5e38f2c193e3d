"""`sanrobust.attack`: images in memory, any network."""

from __future__ import annotations

import pytest
import torch
from attack_cases import batch, small_net
from attack_tester import OneByOne, mostly_right
from torch import Tensor

import sanrobust
from sanrobust.errors import ModelError, ProtocolError, UnknownNameError, UsageError

QUICK = {"iters": 3, "queries": 5, "version": "apgd-ce,square"}


def test_adversarials_and_a_row_per_image_come_back() -> None:
    model, images, labels, _ = mostly_right(9)
    found = sanrobust.attack(model, images, labels, eps=[2, 8], **QUICK)
    assert found.adversarial.shape == (2, 9, 3, *images.shape[2:])
    assert len(found.table) == 18 and found.table["eps"].tolist() == [2.0] * 9 + [8.0] * 9
    for place, eps in enumerate((2, 8)):
        rows = found.table[found.table["eps"] == eps]
        assert rows["adv_pred"].tolist() == model(found.adversarial[place]).argmax(1).tolist()
        assert (found.adversarial[place] - images).abs().max() <= eps / 255 + 1e-6
        right = (rows["adv_pred"] == rows["label"]).mean() * 100
        assert found.robust_accuracy[eps] == pytest.approx(right)
    assert found.robust_accuracy[8] <= found.robust_accuracy[2]


def test_no_number_depends_on_the_batch_size() -> None:
    model, images, labels, _ = mostly_right(9)
    one, several = (sanrobust.attack(model, images, labels, eps=4, batch_size=size, **QUICK)
                    for size in (2, 9))
    assert one.adversarial.shape == images.shape
    assert torch.equal(one.adversarial, several.adversarial)
    assert one.table.to_json() == several.table.to_json()


def test_draws_follow_the_ids() -> None:
    model, images, labels, _ = mostly_right(4)
    ids = ["a", "b", "c", "d"]
    first = sanrobust.attack(model, images, labels, eps=4, ids=ids, attack="apgd-ce", iters=0)
    other = sanrobust.attack(model, images.flip(0), labels.flip(0), eps=4, ids=ids[::-1],
                             attack="apgd-ce", iters=0)
    assert torch.equal(first.adversarial, other.adversarial.flip(0))
    assert not torch.equal(first.adversarial, sanrobust.attack(
        model, images, labels, eps=4, attack="apgd-ce", iters=0).adversarial)


def test_an_image_without_numbers_or_target_is_named_and_left_as_it_was() -> None:
    class Half(OneByOne):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.where(pixels[:, :1, 0, 0] == 1, float("nan"), super().forward(pixels))

    _, images, labels, _ = mostly_right(5)
    images[1, 0, 0, 0] = 1
    found = sanrobust.attack(Half(small_net()), images, labels, eps=4, **QUICK)
    assert found.table["error"].notna().tolist() == [False, True, False, False, False]
    assert torch.equal(found.adversarial[1], images[1])
    labels[3] = 7
    aimed = sanrobust.attack(OneByOne(small_net()), images, labels, attack="pgd", eps=8, step=2,
                             iters=2, targets="fixed:7")
    told = [str(error) for error in aimed.table["error"]]
    assert told[3] == "excluded: the image's label is the fixed target 7"
    assert torch.equal(aimed.adversarial[3], images[3])
    assert aimed.table["hit"].notna().tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(("given", "message"), [
    ({"eps": 0.03}, "--eps must be in units of 1/255"),
    ({"eps": 8, "norm": "linf", "attack": "pgd"}, "--step and --iters are missing"),
    ({"iter": 8}, "there is no keyword named 'iter': did you mean iters?"),
    ({"eps": 8, "budgets": [8]}, "budgets must come without eps, step and iters"),
    ({"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
    ({"ids": ["a"]}, "each image must have an id of its own"),
    ({"ids": ["a", "a"]}, "there are 2 images and 1 different ids"),
    ({"norm": "l3"}, "there is no norm named 'l3'"),
])
def test_what_cannot_be_meant_is_refused(given: dict[str, object], message: str) -> None:
    images, labels, _ = batch(2)
    with pytest.raises((UsageError, UnknownNameError)) as caught:
        sanrobust.attack(small_net(), images, labels, **given)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_what_is_no_batch_is_refused() -> None:
    images, labels, _ = batch(2)
    for bad, of in ((images[0], labels), (images, labels.float()), (images, labels[:1]),
                    (images[:0], labels[:0]), ([], labels)):
        with pytest.raises(UsageError):
            sanrobust.attack(small_net(), bad, of, eps=4)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="must be finite and in"):
        sanrobust.attack(small_net(), images * 255, labels, eps=4)
    with pytest.raises(ProtocolError, match="must be in eval mode"):
        sanrobust.attack(small_net().train(), images, labels, eps=4)


def test_a_model_that_makes_no_logits_of_float32_images_is_refused() -> None:
    class Listed(OneByOne):
        def forward(self, pixels: Tensor) -> tuple[Tensor]:  # type: ignore[override]
            return (super().forward(pixels),)

    _, images, labels, _ = mostly_right(3)
    with pytest.raises(ModelError, match="must take float32 images .*give one in float32"):
        sanrobust.attack(small_net().half(), images, labels, eps=4, **QUICK)
    with pytest.raises(ModelError, match="must return logits"):
        sanrobust.attack(Listed(small_net()), images, labels, eps=4, **QUICK)


@pytest.mark.parametrize("eps", [-1, 300, "-1"])
def test_a_length_that_cannot_be_meant_is_refused_in_its_own_unit(eps: float | str) -> None:
    _, images, labels, _ = mostly_right(3)
    with pytest.raises(UsageError, match="a length in the pixel range, from 0 to 255.*0.5"):
        sanrobust.attack(small_net(), images, labels, norm="l2", eps=eps, **QUICK)
