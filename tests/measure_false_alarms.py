"""Check 30 sound networks of the digits and count the lines that are wrong: there should be none.

The nine networks of the package, and 21 that are trained here within seconds: small convolution
networks of several widths, norms and activations, the same trained against an attack (Madry et al.
2018), a variant of the zoo, networks of timm and two plain ones. Each must have learned its digits,
which is asked before it is checked. Use: python tests/measure_false_alarms.py OUT.csv
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import timm
import torch
from torch import nn

import sanrobust
from sanrobust.zoo.build import build
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.forms import small_config
from small_networks import PLAIN, Small, digits, trained

Model = str | nn.Module
LEAST = 85.0
"""Held-out top-1 in percent of a network that has learned its digits."""


def groups(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def none(_: int) -> nn.Module:
    return nn.Identity()


def networks() -> Iterator[tuple[str, str, Callable[[], Model]]]:
    """Yield what a network is, how it was trained, and what makes it."""
    for arch in PAPER_ORDER:
        yield f"{arch}.digits", "packaged", partial(str, f"{arch}.digits")
    for seed, (width, norm, act) in enumerate((
            (8, nn.BatchNorm2d, nn.ReLU), (16, nn.BatchNorm2d, nn.ReLU), (12, groups, nn.ReLU),
            (12, none, nn.ReLU), (12, nn.BatchNorm2d, nn.GELU), (12, nn.BatchNorm2d, nn.Tanh),
            (12, nn.InstanceNorm2d, nn.SiLU))):
        yield (f"Small({width}, {norm.__name__}, {act.__name__})", f"8 epochs, seed {seed}",
               partial(plain, width, norm, act, seed))
    for eps, epochs, seed in ((2, 8, 0), (4, 8, 1), (8, 8, 2), (8, 16, 3), (16, 8, 4), (16, 16, 5),
                              (32, 16, 6)):
        yield ("Small(12)", f"against PGD, eps {eps}, {epochs} epochs, seed {seed}",
               partial(robust, eps, epochs, seed))
    yield "Small(12), 60 epochs", "60 epochs, seed 7", partial(long, 60, 7)
    yield "resnet26(kernel=5)", "3 epochs", partial(zoo, "resnet26(kernel=5)", 3)
    yield "timm mobilenetv3_small_050", "5 epochs", partial(of_timm, "mobilenetv3_small_050", 5)
    yield "timm VisionTransformer(48, 3)", "20 epochs", partial(transformer, 20)
    yield "timm MlpMixer(48, 3)", "20 epochs", partial(mixer, 20)
    yield "two linear layers", "20 epochs", partial(linear, 20)
    yield "convolution and maxima", "20 epochs", partial(maxima, 20)


def plain(width: int, norm: type[nn.Module], act: type[nn.Module], seed: int) -> nn.Module:
    return trained(Small(width, norm, act), seed=seed)


def robust(eps: float, epochs: int, seed: int) -> nn.Module:
    return trained(Small(), eps=eps, epochs=epochs, seed=seed)


def long(epochs: int, seed: int) -> nn.Module:
    return trained(Small(), epochs=epochs, seed=seed)


def zoo(name: str, epochs: int) -> nn.Module:
    return trained(build(small_config(name, 10)), epochs=epochs)


def of_timm(name: str, epochs: int) -> nn.Module:
    return trained(timm.create_model(name, num_classes=10), epochs=epochs)


def transformer(epochs: int) -> nn.Module:
    return trained(timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10),
        epochs=epochs)


def mixer(epochs: int) -> nn.Module:
    return trained(timm.models.MlpMixer(
        img_size=32, patch_size=8, embed_dim=48, num_blocks=3, num_classes=10), epochs=epochs)


def linear(epochs: int) -> nn.Module:
    return trained(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.ReLU(),
                                 nn.Linear(64, 10)), epochs=epochs)


def maxima(epochs: int) -> nn.Module:
    return trained(nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4),
                                 nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                 nn.Linear(288, 10)), epochs=epochs)


def measured(name: str, how: str, make: Callable[[], Model], out: Path) -> dict[str, object]:
    """Check one network; return its row."""
    started = time.monotonic()
    model = make()
    if not isinstance(model, str):
        require_learned(name, model)
    ready = time.monotonic()
    given = {} if isinstance(model, str) else {"preprocessing": PLAIN}
    table = sanrobust.check(model, out=out, **given).table.set_index("line")
    counts = table["verdict"].value_counts()
    found = {word: " ".join(f"[{line}]" for line in table.index[table["verdict"] == word])
             for word in ("look", "wrong")}
    numbers = table["numbers"]
    print(f"{name} ({how}): {ready - started:.0f} + {time.monotonic() - ready:.0f} s, {found}",
          flush=True)
    return {"network": name, "training": how, "top1": numbers["accuracy"]["top1"],
            "broken_at_8": numbers["radius"].get("rate_8"), "ok": counts.get("ok", 0),
            "look": counts.get("look", 0), "wrong": counts.get("wrong", 0),
            "not_judged": counts.get("not judged", 0), "looks": found["look"],
            "wrongs": found["wrong"]}


def require_learned(name: str, model: nn.Module) -> None:
    """Refuse a network that is not sound by what is known without a check: it must have learned."""
    pixels, labels = digits("test")
    with torch.no_grad():
        top1 = 100 * float((model(pixels).argmax(1) == labels).double().mean())
    if top1 < LEAST:
        raise SystemExit(f"{name} has learned too little: top-1 {top1:.1f} %")


def main(path: Path) -> None:
    torch.set_num_threads(1)
    digits()  # read before anything is timed
    with tempfile.TemporaryDirectory() as out:
        rows = [measured(name, how, make, Path(out)) for name, how, make in networks()]
    table = pd.DataFrame(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")
    print(f"{len(table)} networks: {(table['wrong'] > 0).sum()} with a wrong line, "
          f"{table['look'].sum()} lines to look at")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
