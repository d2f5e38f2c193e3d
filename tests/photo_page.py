"""The claims of Zhao, Jia and Koltun, CVPR 2020, one by one against the tables of results/cifar10.

``python tests/photo_page.py`` prints the end of results/cifar10/README.md, from its first claim on;
nothing in it is typed in but the claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import pandas as pd
from scipy.stats import ttest_ind

from sanrobust.comparison import CLEAR
from sanrobust.metrics import holm
from sanrobust.paper import DISPLAY_NAMES, GROUPS

RESULTS = Path(__file__).parent.parent / "results"
PHOTOGRAPHS = RESULTS / "cifar10"
RESNETS = {10: "resnet26", 15: "resnet38", 19: "resnet50"}
"""The ResNet of each depth of SANs."""
TURNS = {"cw90": "clockwise 90°", "cw180": "clockwise 180°", "cw270": "clockwise 270°",
         "updown": "upside-down"}
ATTACKED = {"success": "s. rate", "top1_adv": "top-1"}
BUDGETS = {2: "n = 2 (ε = 8, ρ = 4)", 4: "n = 4 (ε = 8, ρ = 2)"}
# What is measured beside the paper's tables: folder, table and column.
OTHERS = {"upright": ("", "rotation", "none_top1"),
          "AutoAttack within 8/255": ("autoattack", "pgd", "top1_adv"),
          "attack by rotation and translation, whole grid": ("spatial", "spatial", "grid_top1"),
          "15 corruptions: mean error": ("corrupt", "corruptions", "mean_error")}
TRAINED_AGAIN = ("resnet26", "san10-pair", "san10-patch")
TAGS = ("cifar10", "cifar10-s1", "cifar10-s2")


@dataclass(frozen=True)
class Line:
    """That ``better`` does better than ``worse`` by a column of a table, in points."""

    better: str
    worse: str
    column: str
    measure: str
    iters: int | None = None


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and the lines that it comes to."""

    heading: str
    says: str
    table: str
    lines: tuple[Line, ...]


@cache
def read(path: Path) -> pd.DataFrame:
    """Return a table of results."""
    return pd.read_csv(path)


def drops(worse: str) -> tuple[Line, ...]:
    """Return that pairwise SANs drop less than the ``resnet`` or ``patch`` of their rows."""
    return tuple(Line(f"san{depth}-pair", RESNETS[depth] if worse == "resnet" else
                      f"san{depth}-patch", f"{turn}_top1_drop", f"{shown}: drop in top-1")
                 for depth in RESNETS for turn, shown in TURNS.items())


def attacked(kind: str) -> tuple[Line, ...]:
    """Return that SANs of a kind withstand PGD better than the ResNets of their rows."""
    return tuple(Line(f"san{depth}-{kind}", RESNETS[depth], key, f"attack {shown}: {name}", iters)
                 for depth in RESNETS for iters, shown in BUDGETS.items()
                 for key, name in ATTACKED.items())


def upright(pairs: Iterable[tuple[str, str]]) -> tuple[Line, ...]:
    return tuple(Line(better, worse, "none_top1", "no rotation: top-1") for better, worse in pairs)


CLAIMS = (
    Claim("Accuracy of pairwise attention",
          "Section 5.2: pairwise SANs match or outperform the convolution of their row.",
          "rotation", upright((f"san{depth}-pair", RESNETS[depth]) for depth in RESNETS)),
    Claim("Accuracy of patchwise attention",
          "Section 5.2: patchwise SANs are better still; SAN10 outperforms ResNet38 too, and SAN15 "
          "ResNet50.", "rotation",
          upright([*((f"san{depth}-patch", RESNETS[depth]) for depth in RESNETS),
                   *((f"san{depth}-patch", f"san{depth}-pair") for depth in RESNETS),
                   ("san10-patch", "resnet38"), ("san15-patch", "resnet50")])),
    Claim("Rotation: pairwise attention against convolution",
          "Section 5.4, Table 9: pairwise SANs are less vulnerable to rotation and flipping than "
          "convolutional networks.", "rotation", drops("resnet")),
    Claim("Rotation: pairwise against patchwise attention",
          "The same: and than patchwise SANs.", "rotation", drops("patch")),
    Claim("Rotation: accuracy of what is turned",
          "Table 9: turned or flipped, pairwise SANs are right more often than the convolution of "
          "their row.", "rotation",
          tuple(Line(f"san{depth}-pair", RESNETS[depth], f"{turn}_top1", f"{shown}: top-1")
                for depth in RESNETS for turn, shown in TURNS.items())),
    Claim("Rotation: the smallest pairwise network against the largest ResNet",
          "Section 5.4: turned by 180 degrees, SAN10-pair is right more often than ResNet50.",
          "rotation", (Line("san10-pair", "resnet50", "cw180_top1", "clockwise 180°: top-1"),)),
    Claim("PGD: pairwise attention against convolution",
          "Section 5.4, Table 10: self-attention is much more robust than convolution.", "pgd",
          attacked("pair")),
    Claim("PGD: patchwise attention against convolution", "The same of patchwise SANs.", "pgd",
          attacked("patch")),
)


def of_paper(line: Line, table: str) -> float:
    """Return the paper's difference, better minus worse, in points."""
    rows = read(RESULTS / "paper" / f"{table}.csv").set_index("model")
    if line.iters is not None:
        rows = rows[rows["iters"] == line.iters]
    return float(rows.loc[line.better, line.column] - rows.loc[line.worse, line.column])


def measured(line: Line, compared: pd.DataFrame) -> tuple[float, float, float, float, str]:
    """Return the difference, its interval, Holm's p, and how the line came out."""
    names = [f"{name}.cifar10" for name in (line.better, line.worse)]
    of_line = compared[(compared["measure"] == line.measure)
                       & compared["model_a"].isin(names) & compared["model_b"].isin(names)]
    (row,) = (row for _, row in of_line.iterrows())
    turned = row["model_a"] != names[0]
    difference, low, high = ((-row["difference"], -row["high"], -row["low"]) if turned else
                             (row["difference"], row["low"], row["high"]))
    better = row["better"]
    came = "undecided" if pd.isna(better) else "holds" if better == names[0] else "contrary"
    return difference, low, high, row["p_holm"], came


def table(claim: Claim) -> Iterator[str]:
    """Yield the lines of one claim's section."""
    compared = read(PHOTOGRAPHS / f"compare_{claim.table}.csv")
    found = [(line, measured(line, compared)) for line in claim.lines]
    counts = {word: sum(came == word for *_, came in (values for _, values in found))
              for word in ("holds", "contrary", "undecided")}
    yield f"### {claim.heading}"
    yield ""
    yield claim.says
    yield ""
    yield (f"Rows: {len(found)}. Holds: {counts['holds']}. Contrary: {counts['contrary']}. "
           f"Undecided: {counts['undecided']}.")
    yield ""
    yield "| who | against whom | measure | paper | here | 95 % interval | Holm's p | |"
    yield "| --- | --- | --- | --: | --: | --- | --: | --- |"
    for line, (difference, low, high, p_value, came) in found:
        yield (f"| {DISPLAY_NAMES[line.better]} | {DISPLAY_NAMES[line.worse]} | {line.measure} | "
               f"{of_paper(line, claim.table):+.1f} | {difference:+.1f} | [{low:+.1f}, "
               f"{high:+.1f}] | {p_shown(p_value)} | {came} |")
    yield ""


def p_shown(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def seeds() -> Iterator[str]:
    """Yield how the rows of networks that were trained three times come out over their runs."""
    lines = [line for claim in CLAIMS for line in claim.lines
             if {line.better, line.worse} <= set(TRAINED_AGAIN)]
    found = [over_runs(line) for line in lines]
    adjusted = holm([p_value for *_, p_value in found])
    yield "### The same over three training runs"
    yield ""
    yield ("ResNet26, SAN10-pair and SAN10-patch were trained three times, with seeds 0, 1 and 2; "
           "above stands seed 0. These are the differences of their means over three runs, with "
           "95 % intervals of Welch's t, and p by Holm's correction over this table.")
    yield ""
    yield "| who | against whom | measure | paper | here | 95 % interval | Holm's p | |"
    yield "| --- | --- | --- | --: | --: | --- | --: | --- |"
    for line, (difference, low, high, _), p_value in zip(lines, found, adjusted, strict=True):
        less = line.column == "success" or line.column.endswith("_drop")
        came = ("undecided" if p_value >= CLEAR else
                "holds" if (difference < 0) == less else "contrary")
        table = "rotation" if line.iters is None else "pgd"
        yield (f"| {DISPLAY_NAMES[line.better]} | {DISPLAY_NAMES[line.worse]} | {line.measure} | "
               f"{of_paper(line, table):+.1f} | {difference:+.1f} | [{low:+.1f}, {high:+.1f}] | "
               f"{p_shown(p_value)} | {came} |")
    yield ""


def over_runs(line: Line) -> tuple[float, float, float, float]:
    """Return the difference of two means over training runs, its interval, and p."""
    table = "rotation" if line.iters is None else "pgd"
    better, worse = ([value(table, line, network, tag) for tag in TAGS]
                     for network in (line.better, line.worse))
    test = ttest_ind(better, worse, equal_var=False)
    low, high = test.confidence_interval()
    return (sum(better) - sum(worse)) / len(TAGS), float(low), float(high), float(test.pvalue)


def value(of: str, line: Line, network: str, tag: str) -> float:
    """Return a network's value in the table of the nine, or in that of the others."""
    folder = PHOTOGRAPHS if tag == "cifar10" else PHOTOGRAPHS / "others"
    rows = read(folder / f"{of}.csv").set_index("model")
    if line.iters is not None:
        rows = rows[rows["iters"] == line.iters]
    return float(rows.loc[f"{network}.{tag}", line.column])


def beyond() -> Iterator[str]:
    """Yield what other attacks and corruptions leave of all networks."""
    yield "## Beyond the paper"
    yield ""
    yield ("Accuracy in percent with its 95 % Wilson interval; of corruptions the mean error, where"
           " lower is better.")
    yield ""
    yield "| network | " + " | ".join(OTHERS) + " |"
    yield "| --- |" + " --- |" * len(OTHERS)
    for name in chain(*GROUPS):
        rates = [rate(folder, of, f"{name}.cifar10", key) for folder, of, key in OTHERS.values()]
        yield f"| {DISPLAY_NAMES[name]} | " + " | ".join(rates) + " |"
    yield ""
    yield "### Trained on attacks"
    yield ""
    left = read(PHOTOGRAPHS / "adversarial" / "pgd.csv").set_index("model")
    (count,) = set(left["n"])
    yield (f"On {count} of the images; a network that withstands the attack on a quarter of them "
           "was the aim. ResNet26 was trained for 24 epochs and SAN10-pair for 9, as the attack in "
           "its training takes longest; more was not tried.")
    yield ""
    yield "| network | upright | AutoAttack within 8/255 | at least 25 % |"
    yield "| --- | --- | --- | --- |"
    for name in ("resnet26", "san10-pair"):
        model = f"{name}.cifar10-adv"
        rates = [rate("adversarial", "pgd", model, key) for key in ("clean_top1", "top1_adv")]
        kept = "yes" if left.loc[model, "top1_adv"] >= 25 else "no"
        yield f"| {DISPLAY_NAMES[name]} | {' | '.join(rates)} | {kept} |"
    yield ""


def rate(folder: str, of: str, model: str, key: str) -> str:
    """Return a rate of a model with its interval, as tables write it."""
    rows = read(PHOTOGRAPHS / folder / f"{of}.csv")
    row = rows[rows["model"] == model].iloc[0]
    return f"{row[key]:.1f} [{row[f'{key}_low']:.1f}, {row[f'{key}_high']:.1f}]"


def page() -> str:
    """Return the part of the page that is made from tables."""
    lines = [line for claim in CLAIMS for line in table(claim)]
    return "\n".join([*lines, *seeds(), *beyond()]).strip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
