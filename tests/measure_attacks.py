"""Our attacks against the published code of AutoAttack, image by image, from the same starts.

``python tests/measure_attacks.py FOLDER OUT.csv`` wants the folder with the package ``autoattack``
of https://github.com/fra31/auto-attack, which is read and never copied, and writes OUT.csv.
Auto-PGD starts at our random points in both; Square draws its own squares in both.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sanrobust.attacks.fab import ranks, runner_up
from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.problem import Problem, prepared
from sanrobust.attacks.suite import Strength, attack_until_broken
from sanrobust.attacks.versions import MEMBERS, Version
from sanrobust.data.datasets import open_dataset
from sanrobust.data.loader import batches
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.folded import accelerate
from sanrobust.zoo.resolve import create_model

IMAGES, STRENGTH = 48, Strength(iters=50, queries=500, rescaled=True)
RADII = {"linf": 8 / 255, "l2": 0.8}


@dataclass(frozen=True)
class Published:
    """The published attacks on a problem; each returns which images keep their label."""

    problem: Problem

    @property
    def _kept(self) -> dict[str, Any]:
        norm = {"linf": "Linf", "l2": "L2"}[self.problem.norm.name]
        return {"eps": self.problem.radius, "norm": norm, "seed": 0, "device": "cpu"}

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
        return self._right(made)

    def _right(self, pixels: Tensor) -> Tensor:
        return self.problem.model(pixels).argmax(1) == self.problem.labels

    def _apgd(self, name: str) -> Tensor:
        base = import_module("autoattack.autopgd_base")
        right = self._right(self.problem.images)
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


def _timed(attack: Callable[[], Tensor]) -> tuple[Tensor, float]:
    begin = time.process_time()
    return attack(), time.process_time() - begin


def compare(problem: Problem) -> Iterator[dict[str, object]]:
    """Yield a row for each attack."""
    published = Published(problem)
    for name in MEMBERS:
        def ours(name: str = name) -> Tensor:
            found = attack_until_broken(problem, Version((name,), {}), STRENGTH)
            return found.logits.argmax(1) == problem.labels

        mine, seconds = _timed(ours)
        theirs, their_seconds = _timed(lambda name=name: published.survivors(name))
        yield {"norm": problem.norm.name, "attack": name,
               "clean": _percent(problem.clean_logits.argmax(1) == problem.labels),
               "ours": _percent(mine), "published": _percent(theirs),
               "only ours breaks": _named(problem.ids, ~mine & theirs),
               "only published breaks": _named(problem.ids, mine & ~theirs),
               "CPU s ours": round(seconds, 1), "CPU s published": round(their_seconds, 1)}


def _percent(right: Tensor) -> float:
    return round(100 * float(right.float().mean()), 2)


def _named(ids: Sequence[str], chosen: Tensor) -> str:
    return " ".join(ids[place] for place in chosen.nonzero().flatten().tolist())


def main(folder: str, out: str, *networks: str) -> None:
    """Measure the networks, the paper's nine by default, and write the table after each."""
    sys.path.insert(0, folder)
    torch.set_num_threads(1)
    rows = []
    for network in networks or PAPER_ORDER:
        classifier = create_model(network, tag="digits", say=print)
        images = open_dataset("digits", root=None, num_samples=IMAGES)
        batch = next(iter(batches(images, classifier.preprocessing, plan=[list(range(IMAGES))],
                                  workers=0)))
        model = accelerate(classifier, torch.device("cpu"))[0].eval().requires_grad_(False)
        for norm, radius in RADII.items():
            with prepared(model, batch.pixels, batch.labels, batch.ids) as (pixels, labels):
                problem = Problem(model, pixels, labels, batch.ids, model(pixels).detach(),
                                  NORMS.get(norm), radius, 0)
                rows += [{"model": network, **row} for row in compare(problem)]
            pd.DataFrame(rows).to_csv(out, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
