"""Our attacks against other people's code, image by image, from the same starts.

``python tests/measure_attacks.py OUT.csv`` measures the nine networks on the digits, writes OUT.csv
after each and prints all networks together; with ``--join`` it puts tables together that were made
one by one, of which a later one replaces rows of an earlier. The others are imported where they
can be: ``autoattack``, the published code of AutoAttack (https://github.com/fra31/auto-attack; name
its folder in ``--path``, it is read and never copied), ``torchattacks`` and ``foolbox``. Auto-PGD
starts at our random points on both sides, PGD at the clean image; Square draws its own squares on
both.

Images that one side alone breaks are attacked once more by both, each by itself: where sides agree
then, it was the rounding of sums, whose order depends on the other images of a batch. Then by both
with other draws and its pixels moved a hair: where both break some of these, it was chance. Images
whose logits are not finite on the way are left out of a row and counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sanrobust.attacks.budget import LEVELS, Budget
from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.pgd import pgd
from sanrobust.attacks.problem import Problem, prepared
from sanrobust.attacks.result import BudgetResult
from sanrobust.attacks.suite import Strength, attack_until_broken, ranks, runner_up
from sanrobust.attacks.versions import MEMBERS, Version
from sanrobust.data.datasets import open_dataset
from sanrobust.data.loader import batches
from sanrobust.device import choose_device, exact
from sanrobust.errors import NonFiniteError
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.resolve import create_model

STRENGTH = Strength(iters=50, queries=500, rescaled=True)
STEPS = 10
"""Of PGD, each a quarter of the radius long; FGSM is one step of all of it."""
FIXED = {"pgd": (STEPS, 4), "fgsm": (1, 1)}
"""Steps of an attack, and how many steps a radius is long."""
ROUNDED = 0.01
"""Levels of 0 to 255 below which a difference of pixels is float32's rounding."""
MEASURED = ["model", "norm", "radius", "seed", "against", "attack"]
"""What a row is about."""
TRIES, MOVED = 8, 1e-7
"""Variants of an image that one side alone breaks, and how far their pixels are moved."""


def _right(problem: Problem, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return problem.model(pixels).argmax(1) == problem.labels


@dataclass(frozen=True)
class AutoAttack:
    """The published attacks on a problem; each returns which images keep their label."""

    problem: Problem
    attacks = MEMBERS

    @property
    def _kept(self) -> dict[str, Any]:
        norm = {"linf": "Linf", "l2": "L2"}[self.problem.norm.name]
        return {"eps": self.problem.radius, "norm": norm, "seed": self.problem.seed,
                "device": str(self.problem.images.device)}

    def survivors(self, name: str) -> Tensor:
        """Attack and return (B,) bool."""
        if name.startswith("apgd"):
            return self._apgd(name)
        if name == "square":
            attack = import_module("autoattack.square").SquareAttack(
                self.problem.model, n_queries=STRENGTH.queries, p_init=0.8,
                resc_schedule=STRENGTH.rescaled, **self._kept)
        else:
            attack = import_module("autoattack.fab_pt").FABAttack_PT(
                self.problem.model, n_iter=STRENGTH.iters, targeted=name == "fab-t",
                n_target_classes=9, **self._kept)
        made = attack.perturb(self.problem.images.clone(), self.problem.labels.clone())
        return _right(self.problem, made)

    def _apgd(self, name: str) -> Tensor:
        base = import_module("autoattack.autopgd_base")
        right = _right(self.problem, self.problem.images)
        targeted = name == "apgd-t"
        kind = base.APGDAttack_targeted if targeted else base.APGDAttack
        attack = kind(self.problem.model, n_iter=STRENGTH.iters, **self._kept)
        attack.loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[name]
        attack.init_hyperparam(self.problem.images)
        for rank in ranks(self.problem.num_classes, 9) if targeted else [0]:
            left = right.nonzero().squeeze(1)
            if not len(left):
                break
            part = self.problem.part(left)
            if targeted:
                attack.y_target = runner_up(part.clean_logits, part.labels, rank)
            begin = part.start(f"{name}:{rank}" if targeted else name, 0)
            _, kept, _, _ = attack.attack_single_run(part.images, part.labels, x_init=begin)
            right[left] = kept.bool()
        return right


@dataclass(frozen=True)
class FixedSteps:
    """PGD and FGSM of another package, from the images themselves."""

    problem: Problem
    attacks = tuple(FIXED)

    def survivors(self, name: str) -> Tensor:
        """Attack and return (B,) bool."""
        steps, parts = FIXED[name]
        return _right(self.problem, self.attacked(steps, self.problem.radius / parts))

    def attacked(self, steps: int, step: float) -> Tensor:
        """Return the images (B, 3, H, W) after so many steps of that size."""
        raise NotImplementedError


class Torchattacks(FixedSteps):
    """Those of torchattacks."""

    def attacked(self, steps: int, step: float) -> Tensor:
        attacks = import_module("torchattacks")
        kind = attacks.PGD if self.problem.norm.name == "linf" else attacks.PGDL2
        attack = kind(self.problem.model, eps=self.problem.radius, alpha=step, steps=steps,
                      random_start=False)
        return attack(self.problem.images, self.problem.labels)


class Foolbox(FixedSteps):
    """Those of foolbox."""

    def attacked(self, steps: int, step: float) -> Tensor:
        foolbox = import_module("foolbox")
        attacks = foolbox.attacks
        kind = attacks.LinfPGD if self.problem.norm.name == "linf" else attacks.L2PGD
        model = foolbox.PyTorchModel(self.problem.model, bounds=(0, 1),
                                     device=self.problem.images.device)
        return kind(abs_stepsize=step, steps=steps, random_start=False).run(
            model, self.problem.images, self.problem.labels, epsilon=self.problem.radius)


OTHERS: dict[str, Callable[[Problem], Any]] = {
    "autoattack": AutoAttack, "torchattacks": Torchattacks, "foolbox": Foolbox}


def ours(problem: Problem, name: str) -> Tensor:
    """Attack and return for each image (B,) 1 where it keeps its label, 0 where not, nan where its
    logits are not finite."""
    try:
        return _ours(problem, name).float()
    except NonFiniteError:
        count = len(problem.ids)
        if count == 1:
            return torch.full((1,), torch.nan, device=problem.images.device)
        halves = torch.arange(count, device=problem.images.device).chunk(2)
        return torch.cat([ours(problem.part(half), name) for half in halves])


def _ours(problem: Problem, name: str) -> Tensor:
    if name in FIXED:
        return _stepped(problem, name).adv_pred == problem.labels
    found = attack_until_broken(problem, Version((name,), {}), STRENGTH)
    return found.logits.argmax(1) == problem.labels


def _stepped(problem: Problem, name: str) -> BudgetResult:
    """Return what our PGD makes of images in so many steps."""
    steps, parts = FIXED[name]
    radius = problem.radius * (LEVELS if problem.norm.levels else 1)
    (result,) = pgd(problem.model, problem.images, problem.labels, problem.ids, targets=None,
                    budgets=[Budget(radius, radius / parts, steps)], norm=problem.norm.name)
    return result


def _apart(problem: Problem, other: str, name: str) -> dict[str, float]:
    """Return how many values of adversarials differ by more than `ROUNDED` levels, and how far."""
    if name not in FIXED:
        return {}
    steps, parts = FIXED[name]
    made = OTHERS[other](problem).attacked(steps, problem.radius / parts)
    apart = LEVELS * (_stepped(problem, name).adversarial - made).abs()
    far = apart > ROUNDED
    return {"values apart, %": 100 * float(far.float().mean()),
            "images apart": int(far.flatten(1).any(1).sum()), "levels apart": float(apart.max())}


def _timed(attack: Callable[[], Tensor]) -> tuple[Tensor, float]:
    begin = time.process_time()
    return attack(), time.process_time() - begin


def compare(problem: Problem, others: Sequence[str], attacks: Sequence[str]
            ) -> Iterator[dict[str, object]]:
    """Yield a row for each of the attacks that one of the others has."""
    for other in others:
        theirs = OTHERS[other](problem)
        for name in (name for name in theirs.attacks if name in attacks):
            mine, seconds = _timed(lambda name=name: ours(problem, name))
            kept, their_seconds = _timed(lambda name=name: theirs.survivors(name))
            good = mine.isfinite()
            clean = problem.clean_logits.argmax(1) == problem.labels
            yield {"norm": problem.norm.name, "radius": round(problem.radius, 5),
                   "seed": problem.seed, "against": other, "attack": name,
                   "images": int(good.sum()), "no numbers": int((~good).sum()),
                   "clean": _percent(clean[good]), "ours": _percent(mine[good]),
                   "theirs": _percent(kept[good]),
                   "only ours breaks": _alone(problem, (mine == 0) & kept, other, name),
                   "only theirs breaks": _alone(problem, (mine == 1) & ~kept, other, name),
                   "CPU s ours": round(seconds, 1), "CPU s theirs": round(their_seconds, 1),
                   **_apart(problem.part(good.nonzero().squeeze(1)), other, name)}


def _percent(right: Tensor) -> float:
    return round(100 * float(right.float().mean()), 2)


def _alone(problem: Problem, chosen: Tensor, other: str, name: str) -> str:
    """Name images, who breaks each by itself, and how many of its `TRIES` variants each side."""
    words = []
    for place in chosen.nonzero():
        image = problem.part(place)
        tries = [_broken(variant, other, name) for variant in (image, *_variants(image))]
        sides = "+".join(side for side, was in zip(("ours", "theirs"), tries[0], strict=True)
                         if was)
        mine, their = (sum(side) for side in zip(*tries[1:], strict=True))
        words.append(f"{image.ids[0]} ({sides or 'nobody'}; of {TRIES} variants ours {mine}, "
                     f"theirs {their})")
    return ", ".join(words)


def _variants(image: Problem) -> Iterator[Problem]:
    """Yield an image with other draws and its pixels moved by no more than rounding moves sums."""
    for seed in range(image.seed + 1, image.seed + 1 + TRIES):
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(image.images.shape, generator=random).to(image.images.device)
        moved = (image.images + MOVED * noise).clamp(0, 1)
        yield replace(image, images=moved, clean_logits=image.model(moved).detach(), seed=seed)


def _broken(image: Problem, other: str, name: str) -> tuple[bool, bool]:
    """Return whether each side breaks an image."""
    return not bool(ours(image, name)), not bool(OTHERS[other](image).survivors(name))


def totals(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is left of the images of all networks, in percent."""
    sides = ["clean", "ours", "theirs"]
    counts = table.assign(**{side: table[side] * table["images"] for side in sides})
    found = counts.groupby(["norm", "against", "attack"], sort=False)[["images", *sides]].sum()
    found[sides] = found[sides].div(found["images"], axis=0).round(2)
    return found.reset_index()


def _problems(network: str, asked: argparse.Namespace) -> Iterator[Problem]:
    device = choose_device(asked.device)
    classifier = create_model(network, tag=asked.tag, checkpoint=asked.checkpoint,
                              say=print).to(device)
    images = open_dataset(asked.data, root=None, num_samples=asked.images)
    plan = [list(range(len(images.refs)))]
    batch = next(iter(batches(images, classifier.preprocessing, plan=plan, workers=0))).to(device)
    model = accelerate(classifier, device).classifier.eval().requires_grad_(False)
    radii = {"linf": asked.linf / LEVELS, "l2": asked.l2}
    for norm in asked.norm:
        with prepared(model, batch.pixels, batch.labels, batch.ids) as (pixels, labels):
            yield Problem(model, pixels, labels, batch.ids, model(pixels).detach(),
                          NORMS.get(norm), radii[norm], asked.seed)


def _asked() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("out", type=Path)
    words.add_argument("networks", nargs="*", default=list(PAPER_ORDER))
    words.add_argument("--path", action="append", default=[], help="where the others lie")
    words.add_argument("--data", default="digits")
    words.add_argument("--tag", default="digits", help="of the weights")
    words.add_argument("--checkpoint", type=Path)
    words.add_argument("--images", type=int, default=48)
    words.add_argument("--norm", nargs="+", default=["linf", "l2"], choices=["linf", "l2"])
    words.add_argument("--linf", type=float, default=8, help="radius in 1/255")
    words.add_argument("--l2", type=float, default=0.8)
    words.add_argument("--attack", nargs="+", default=[*MEMBERS, *FIXED])
    words.add_argument("--seed", type=int, default=0, help="of what is drawn on both sides")
    words.add_argument("--device", default="cpu")
    words.add_argument("--join", nargs="+", type=Path, default=[], metavar="CSV",
                       help="tables to put together; nothing is measured")
    return words.parse_args()


def _parts(asked: argparse.Namespace) -> Iterator[list[dict[str, object]]]:
    """Yield the rows of each network and norm, or those of each table that is joined."""
    for table in asked.join:
        yield pd.read_csv(table).to_dict("records")
    others = [name for name in OTHERS if importlib.util.find_spec(name)]
    for network in [] if asked.join else asked.networks:
        for problem in _problems(network, asked):
            yield [{"model": f"{network}.{asked.tag}", **row}
                   for row in compare(problem, others, asked.attack)]


@exact()
def main() -> None:
    """Write the table after each part of it, and print all networks together."""
    asked = _asked()
    sys.path += asked.path
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    table = pd.DataFrame()
    for part in _parts(asked):
        rows += part
        table = pd.DataFrame(rows).drop_duplicates(MEASURED, keep="last")
        table.to_csv(asked.out, index=False)
    print(totals(table).to_string(index=False))


if __name__ == "__main__":
    main()
