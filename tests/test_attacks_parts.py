"""The parts of the attack suite, each against the formula or the solver it stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_cases import batch, require_torchattacks, small_net
from scipy.optimize import linprog, minimize
from torch import Tensor
from torch.nn import functional as F

from sanrobust.attacks.apgd import Walk, checkpoints
from sanrobust.attacks.budget import Budget
from sanrobust.attacks.fab import nearest_boundary
from sanrobust.attacks.hyperplane import way_to
from sanrobust.attacks.losses import cross_entropy, dlr, dlr_or_margin, margin, pair
from sanrobust.attacks.norms import NORMS, row_sum
from sanrobust.attacks.pgd import pgd
from sanrobust.attacks.problem import Problem
from sanrobust.attacks.randomness import Draws
from sanrobust.attacks.square import share_at
from sanrobust.attacks.suite import ranks, runner_up
from sanrobust.attacks.targets import parse_rule

AWAY = parse_rule("none")


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 3072, 3075])
def test_sums_are_right_and_the_same_in_every_batch(width: int) -> None:
    rows = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    sums = row_sum(rows)
    torch.testing.assert_close(sums.double(), rows.double().sum(1), rtol=1e-5, atol=1e-4)
    for part in ([0], [3, 4], list(range(8, -1, -1))):
        assert torch.equal(row_sum(rows[part]), sums[part])


def test_projections_are_the_nearest_legal_points() -> None:
    generator = torch.Generator().manual_seed(0)
    images, pixels = torch.rand(2, 6, 3, 2, 2, generator=generator)
    for name, radius in (("linf", 0.1), ("l2", 0.3)):
        norm = NORMS.get(name)
        project = norm.projection(images, radius)
        near = project(pixels.clone())
        assert norm.size(near - images).max() <= radius * (1 + 1e-6)
        inside = project(near.clone())
        torch.testing.assert_close(inside, near, rtol=0, atol=1e-7)
    gradient = torch.randn(6, 3, 2, 2, generator=generator)
    for name in NORMS.names():
        norm = NORMS.get(name)
        step = norm.direction(gradient)
        torch.testing.assert_close(norm.size(step), torch.ones(6))
        torch.testing.assert_close(row_sum((step * gradient).flatten(1)), norm.dual(gradient))


def plane(seed: int, count: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """A point in the unit box, a plane and how far off it the point is."""
    generator = torch.Generator().manual_seed(seed)
    point = torch.rand(count, generator=generator)
    normal = torch.randn(count, generator=generator)
    normal[seed % count] = 0
    aim = torch.rand(count, generator=generator)
    return point, normal, normal @ (point - aim)


@pytest.mark.parametrize("seed", range(8))
def test_the_way_to_a_plane_is_as_short_as_a_solver_finds(seed: int) -> None:
    point, normal, offset = plane(seed)
    box = np.stack([-point.numpy(), 1 - point.numpy()], 1)
    flat = way_to(point[None], normal[None], offset[None], euclidean=False)[0]
    assert abs(float(normal @ flat + offset)) < 1e-5
    # Minimise t with |d| <= t, the plane met and the box held.
    count = len(point)
    eye = np.eye(count)
    solved = linprog([0] * count + [1], A_ub=np.block([[eye, -np.ones((count, 1))],
                                                       [-eye, -np.ones((count, 1))]]),
                     b_ub=np.zeros(2 * count), A_eq=[[*normal.tolist(), 0]],
                     b_eq=[-float(offset)], bounds=[*box.tolist(), (0, None)])
    assert float(flat.abs().max()) == pytest.approx(solved.fun, abs=1e-5)
    short = way_to(point[None], normal[None], offset[None], euclidean=True)[0]
    assert abs(float(normal @ short + offset)) < 1e-5
    found = minimize(lambda change: change @ change, np.zeros(count), bounds=box,
                     jac=lambda change: 2 * change, tol=1e-12,
                     constraints={"type": "eq", "fun": lambda change: (
                         normal.double().numpy() @ change + float(offset))})
    assert float(short.norm()) == pytest.approx(math.sqrt(found.fun), abs=1e-4)
    for change in (flat, short):
        assert (point + change).min() >= -1e-6 and (point + change).max() <= 1 + 1e-6


@pytest.mark.parametrize("euclidean", [False, True])
def test_a_plane_out_of_reach_is_approached(euclidean: bool) -> None:
    point, normal = torch.tensor([[0.5, 0.2, 0.9]]), torch.tensor([[1.0, -2.0, 0.0]])
    change = way_to(point, normal, torch.tensor([100.0]), euclidean=euclidean)
    assert (point + change).tolist() == [pytest.approx([0, 1, 0.9])]
    still = way_to(point, torch.zeros(1, 3), torch.tensor([1.0]), euclidean=euclidean)
    assert torch.equal(still, torch.zeros(1, 3))


def test_auto_pgd_looks_at_its_step_where_the_paper_does() -> None:
    # p_1 = 0.22 and p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), of 100 steps.
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(5)) == [1, 2, 3, 4, 5]


def test_a_label_that_is_lost_where_auto_pgd_looks_at_its_step_is_lost() -> None:
    right, lost = torch.tensor([0.40, 0.39, 0.21]).log(), torch.tensor([0.42, 0.45, 0.13]).log()
    said = iter([right, right, lost, right, right])

    def model(pixels: Tensor) -> Tensor:
        return next(said) + 0 * pixels.sum((1, 2, 3)).unsqueeze(1)

    images, labels = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    problem = Problem(model, images, labels, ["a"], right[None], NORMS.get("linf"), 0.1, 0)
    # At step 2 of 4 the label's probability is higher than before, and so the step is halved.
    made = Walk(cross_entropy, 4, images)(problem)
    assert made.broken.tolist() == [True] and made.step.tolist() == [2]
    assert torch.equal(made.logits, lost[None])
    assert made.paths() == [pytest.approx([math.log(0.40), math.log(0.40), math.log(0.42)])]


def test_squares_shrink_where_the_paper_has_them_shrink() -> None:
    shares = [share_at(query) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert shares == [0.8 / part for part in (1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]


def test_the_ratio_is_that_of_the_paper_and_its_numerator_serves_few_classes() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 2.0, 5.0, 1.0]])
    labels, targets = torch.tensor([0, 1]), torch.tensor([1, 2])
    torch.testing.assert_close(dlr(logits, None, labels),
                               torch.tensor([(3 - 1) / (3 - 0.5), (2 - 5) / (5 - 1.0)]))
    torch.testing.assert_close(dlr(logits, targets, labels),
                               torch.tensor([2 / (3 - (0.5 - 1) / 2), -3 / (5 - (1 + 0) / 2)]))
    assert pair(logits, targets, labels).tolist() == [2, -3]
    assert margin(logits, None, labels).tolist() == [2, -3]
    assert [dlr_or_margin(count, targeted=True) for count in (3, 4)] == [pair, dlr]
    assert [dlr_or_margin(count, targeted=False) for count in (2, 3)] == [pair, dlr]


def test_wrong_classes_come_in_the_order_of_their_logits() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 2.0, -1.0]]), torch.tensor([0])
    assert [int(runner_up(logits, labels, rank)) for rank in ranks(4, 9)] == [2, 1, 3]
    assert len(ranks(2, 9)) == 1 and len(ranks(1000, 9)) == 9


@pytest.mark.parametrize("norm", NORMS.names())
def test_the_nearest_boundary_is_the_one_with_the_smallest_distance(norm: str) -> None:
    net, (images, labels, ids) = small_net(), batch(3)
    logits = net(images).detach()
    problem = Problem(net, images, labels, ids, logits, NORMS.get(norm), 0.1, 0)
    point = nearest_boundary(problem, images)
    for row in range(3):
        ways = {}
        for other in range(10):
            if other != int(labels[row]):
                pixels = images[row:row + 1].clone().requires_grad_()
                out = net(pixels)[0]
                value = out[labels[row]] - out[other]
                gradient = torch.autograd.grad(value, pixels)[0]
                size = gradient.abs().sum() if norm == "linf" else gradient.norm()
                ways[other] = ((value.abs() / size).item(), value.item())
        nearest = min(ways.values())
        assert float(point.loss[row]) == pytest.approx(nearest[1], rel=1e-4)


def test_draws_belong_to_the_image_and_go_on_where_they_were() -> None:
    device = torch.device("cpu")
    whole = Draws(["a", "b", "c"], 0, "square", device)
    signs = torch.stack([whole.signs(5) for _ in range(70)])
    places = torch.stack([whole.places(9) for _ in range(900)])
    alone = Draws(["c"], 0, "square", device)
    assert torch.equal(torch.stack([alone.signs(5) for _ in range(70)]), signs[:, 2:])
    part = alone.part(torch.tensor([0]))
    assert torch.equal(torch.stack([part.places(9) for _ in range(900)]), places[:, 2:])
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 0.1
    counts = torch.bincount(places.flatten(), minlength=9)
    assert len(counts) == 9 and counts.min() > 240  # 300 of each expected
    assert whole.places(0).tolist() == [0, 0, 0]


def test_what_is_drawn_ahead_is_what_will_be_drawn() -> None:
    device = torch.device("cpu")
    draws, plain = (Draws(["a", "b"], 0, "square", device) for _ in range(2))
    signs = [plain.signs(70) for _ in range(300)]  # of two words each
    rows, turns = torch.tensor([1, 0, 1]), torch.tensor([0, 3, 250])
    ahead = draws.ahead(rows, turns, 2).signs(70)
    expected = [signs[turn][row] for row, turn in zip(rows.tolist(), turns.tolist())]
    assert torch.equal(ahead, torch.stack(expected))
    draws.skip(torch.tensor([2, 6]))
    assert torch.equal(draws.signs(70), torch.stack([signs[1][0], signs[3][1]]))
    assert torch.equal(draws.part(torch.tensor([1])).signs(70), signs[4][1:])


def lengths(change: Tensor) -> Tensor:
    return change.square().sum((1, 2, 3), keepdim=True).sqrt()


def plain(norm: str, *, eps: float, step: float, iters: int, momentum: float = 0.0,
          count: int = 6) -> tuple[Tensor, Tensor]:
    """Untargeted descent as a loop that anybody would write, and the same by `pgd`."""
    net, (images, labels, ids) = small_net(), batch(count)
    unit = 255 if norm == "linf" else 1
    adversarial, kept = images.clone(), torch.zeros_like(images)
    for _ in range(iters):
        pixels = adversarial.clone().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(net(pixels), labels, reduction="sum"),
                                       pixels)[0]
        if momentum:
            kept = momentum * kept + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
            gradient = kept
        if norm == "linf":
            moved = adversarial + step / unit * gradient.sign()
            change = (moved - images).clamp(-eps / unit, eps / unit)
        else:
            moved = adversarial + step * gradient / lengths(gradient)
            change = moved - images
            change = change * (eps / lengths(change)).clamp(max=1)
        adversarial = (images + change).clamp(0, 1)
    (ours,) = pgd(net, images, labels, ids, budgets=[Budget(eps, step, iters)], targets=AWAY,
                  norm=norm, momentum=momentum)
    return ours.adversarial, adversarial


@pytest.mark.parametrize(("norm", "eps", "step", "momentum"), [
    ("linf", 8, 2, 0.0), ("linf", 8, 8, 0.0), ("linf", 8, 0.8, 1.0), ("l2", 0.5, 0.2, 0.0),
    ("l2", 0.5, 0.1, 0.9)])
def test_descent_is_the_plain_loop_pixel_for_pixel(norm: str, eps: float, step: float,
                                                   momentum: float) -> None:
    ours, expected = plain(norm, eps=eps, step=step, iters=5, momentum=momentum)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "options", "norm", "budget", "momentum"), [
    ("FGSM", {"eps": 8 / 255}, "linf", Budget(8, 8, 1), 0.0),
    ("BIM", {"eps": 8 / 255, "alpha": 2 / 255, "steps": 5}, "linf", Budget(8, 2, 5), 0.0),
    ("PGD", {"eps": 8 / 255, "alpha": 2 / 255, "steps": 5, "random_start": False}, "linf",
     Budget(8, 2, 5), 0.0),
    ("PGDL2", {"eps": 0.5, "alpha": 0.2, "steps": 5, "random_start": False}, "l2",
     Budget(0.5, 0.2, 5), 0.0),
    ("MIFGSM", {"eps": 8 / 255, "alpha": 1 / 255, "steps": 5, "decay": 1.0}, "linf",
     Budget(8, 1, 5), 1.0)])
def test_descent_is_that_of_torchattacks_pixel_for_pixel(
        name: str, options: dict[str, object], norm: str, budget: Budget, momentum: float) -> None:
    package = require_torchattacks()
    net, (images, labels, ids) = small_net(), batch(8)
    theirs = getattr(package, name)(net, **options)(images, labels)
    (ours,) = pgd(net, images, labels, ids, budgets=[budget], targets=AWAY, norm=norm,
                  momentum=momentum)
    torch.testing.assert_close(ours.adversarial, theirs, rtol=0, atol=2e-6)


def test_an_untargeted_attack_tells_when_the_label_was_lost() -> None:
    net, (images, labels, ids) = small_net(), batch(12)
    (result,) = pgd(net, images, labels, ids, budgets=[Budget(6, 1.5, 6)], targets=None)
    assert result.targets is None and result.hit is None and result.target_loss is None
    assert result.broken_at is not None and result.losses is not None
    for row, at in enumerate(result.broken_at):
        walked = [pgd(net, images, labels, ids, budgets=[Budget(6, 1.5, steps)], targets=None)[0]
                  .adv_pred[row] != labels[row] for steps in range(7)]
        assert at == (walked.index(True) if True in walked else None)
        assert len(result.losses[row]) == 7 and result.losses[row][0] >= result.losses[row][-1]
