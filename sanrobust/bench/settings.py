"""What a benchmark was asked to measure, as a frozen value; no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OPERATORS, MODELS, MEMORY, ATTACKS, LOOP = "operators", "models", "memory", "attacks", "loop"
TRAINING = "training"  # a part, and its step
PARTS = (OPERATORS, MODELS, MEMORY, TRAINING, ATTACKS, LOOP)
# Stands for models and memory of every design of the paper, against ResNet50 as it is evaluated.
VARIANTS = "variants"
# What is measured where no part is named: attacks need networks that are trained, and an extra.
USUAL_PARTS = (OPERATORS, MODELS, MEMORY)
FORWARD, ATTACK = "forward", "attack"
STEPS = (FORWARD, ATTACK)

OURS, PLAIN, UNFOLD, COMPILED = "ours", "plain", "unfold", "compiled"
CHECKPOINTED = "checkpointed"
RESNET, RESNET_LAST, RESNET_OURS = "resnet50", "resnet50-nhwc", "resnet50-folded"
RESNET_SMALL = "resnet26"
TORCHATTACKS = "torchattacks"
CONTENDERS = {
    OURS: "what the evaluation and the training use",
    CHECKPOINTED: "ours in training, with --grad-checkpointing",
    PLAIN: "the reference backend, plain torch",
    UNFOLD: "the layers as released, with unfold in place of their operators",
    COMPILED: "torch.compile of the reference",
    RESNET: "ResNet50, planes of channels",
    RESNET_LAST: "ResNet50, channels last",
    RESNET_OURS: "ResNet50 as the evaluation computes it: norms folded, on a CPU channels last",
    RESNET_SMALL: "ResNet26, in training",
    TORCHATTACKS: "the attacks of torchattacks",
}
# What separates module and function in the name of a formulation of the user's own.
OWN = ":"
SANS = ("san10-pair", "san10-patch", "san15-pair", "san15-patch", "san19-pair", "san19-patch")
DTYPES = ("float32", "float16", "bfloat16")
AUTOATTACK, APGD_CE, APGD_T, FAB_T, SQUARE, PGD = (
    "autoattack", "apgd-ce", "apgd-t", "fab-t", "square", "pgd")
ATTACKED = ("resnet26.digits", "san10-pair.digits")
LOOPED = ("resnet50", "san19-pair")
LOOPS = ("rotate", "pgd")


def in_order(names: Iterable[str]) -> list[str]:
    """Return contenders in the order in which they are shown, each once."""
    present = dict.fromkeys(names)
    return ([name for name in CONTENDERS if name in present]
            + [name for name in present if name not in CONTENDERS])


@dataclass(frozen=True)
class Shape:
    """How every contender computes.

    Attributes:
        batch_size: images in a batch.
        img_size: side of an image in pixels.
        device: a device's name, as torch spells it.
        dtype: element type of weights and pixels, one of `DTYPES`.
    """

    batch_size: int = 8
    img_size: int = 224
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class Threat:
    """What is attacked, by what and how hard; the same for every contender.

    Attributes:
        models: networks of the digits.
        attacks: names of ours.
        images: how many digits, attacked together.
        eps: L-inf radius in 1/255.
        iters: steps of an attack with gradients; AutoAttack of torchattacks has 10, the paper 100.
        queries: of Square; both have 5000.
    """

    models: tuple[str, ...] = ATTACKED
    attacks: tuple[str, ...] = (AUTOATTACK, APGD_CE, APGD_T, FAB_T, SQUARE, PGD)
    images: int = 16
    eps: float = 8.0
    iters: int = 20
    queries: int = 100


@dataclass(frozen=True)
class Loop:
    """Which command is held against its bare model.

    Attributes:
        models: names as the zoo knows them; an architecture alone has untrained weights.
        experiments: which of `LOOPS`.
        images: how many.
        data: a dataset's name or a folder; None makes random photographs.
    """

    models: tuple[str, ...] = LOOPED
    experiments: tuple[str, ...] = LOOPS
    images: int = 64
    data: str | None = None


@dataclass(frozen=True)
class Settings:
    """Everything that a benchmark is asked for.

    Attributes:
        parts: which of `PARTS` to measure.
        models: names as the zoo knows them; an architecture alone has untrained weights.
        contenders: which of `CONTENDERS` take part, and formulations of the user's own, written
            ``module:function``.
        shape: how they compute.
        threat: how networks are attacked.
        loop: which command is timed as a whole.
        repeats: healthy samples wanted of each contender.
        threads: of the CPU; None leaves torch's own choice.
        peak: best rate that the probe is known to reach on this machine, in GFLOP/s; None takes
            the best seen in the run.
        out: folder of the results.
    """

    parts: tuple[str, ...] = USUAL_PARTS
    models: tuple[str, ...] = SANS
    contenders: tuple[str, ...] = (OURS, CHECKPOINTED, PLAIN, UNFOLD, RESNET, RESNET_LAST,
                                   RESNET_SMALL, TORCHATTACKS)
    shape: Shape = Shape()
    threat: Threat = Threat()
    loop: Loop = Loop()
    repeats: int = 5
    threads: int | None = None
    peak: float | None = None
    out: Path = Path("results/bench")
