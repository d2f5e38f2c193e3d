"""The attack by rotation and translation: its settings, transformations and search.

Engstrom, Tran, Tsipras, Schmidt and Madry, Exploring the Landscape of Spatial Robustness, ICML
2019.

Letters: B images, S rows and columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from sanrobust.attacks.budget import whole_number
from sanrobust.attacks.randomness import hashed
from sanrobust.errors import NonFiniteError, UsageError, shown_value
from sanrobust.options import Number, Whole, as_number, option, setting
from sanrobust.registry import unknown_name

if TYPE_CHECKING:
    from torch import Tensor

FILLS = {
    "black": "what comes in from outside the image is black",
    "reflect": "what comes in from outside is the image mirrored at its edges",
    "crop": "every image, the natural one too, is the central {percent} % of the side, enlarged, "
            "into which no angle and no shift brings anything from outside",
}
"""What fills the corners of a turned image, in words."""
_MOST_ANGLES, _MOST_POINTS = 1000, 100_000


class Move(NamedTuple):
    """A transformation: first a shift, then a turn about the centre.

    Attributes:
        rotation: degrees anticlockwise.
        right, down: parts of the side.
    """

    rotation: float
    right: float = 0.0
    down: float = 0.0


STILL = Move(0.0)


@dataclass(frozen=True, kw_only=True)
class SpatialSettings:
    """Angles, and the set of transformations that the attack chooses from.

    Raises UsageError for what cannot be meant.
    """

    angles: tuple[float, ...] = setting("-180:180:15", option(
        "--angles", show_default=True, metavar="DEGREES",
        help="Angles at which accuracy is measured, anticlockwise: START:STOP:STEP, or a list "
             "such as 0,45,90."))
    rotation: float = setting(30.0, option(
        "--rotation", type=Number(0, 180, "30"), show_default=True, metavar="DEGREES",
        help="Largest rotation of the attack, either way."))
    translation: float = setting("3/32", option(
        "--translation", show_default=True, metavar="PART",
        help="Largest translation of the attack along each axis, as a part of the side."))
    grid: tuple[int, int, int] = setting("5x5x31", option(
        "--grid", show_default=True, metavar="XxYxR",
        help="Points of the attack's grid: horizontal and vertical translations, and rotations; "
             "odd numbers, so that the untouched image is a point."))
    worst_of: int = setting(10, option(
        "--worst-of", type=Whole(1, _MOST_POINTS, example=10), show_default=True, metavar="K",
        help="Points drawn from the grid for each image, of which the worst counts."))
    fill: str = setting("black", option(
        "--fill", show_default=True, metavar="|".join(FILLS),
        help="What fills the corners of a turned image: black, the image mirrored at its edges, or "
             "nothing, because all images are cropped to what every transformation keeps."))
    seed: int = setting(0, option(
        "--seed", type=Whole(0, 2**63 - 1), show_default=True,
        help="Seed of the points drawn; each draw belongs to (seed, image)."))

    def __post_init__(self) -> None:
        if str(self.fill) not in FILLS:
            raise unknown_name("fill", str(self.fill), FILLS, listing="sanrobust spatial --help")
        most = 0.25 if self.fill == "crop" else 0.5
        read = dict(angles=_angles(self.angles),
                    rotation=_within("--rotation", self.rotation, 180, "30"),
                    translation=_within("--translation", self.translation, most, "3/32"),
                    grid=_grid(self.grid),
                    worst_of=whole_number(self.worst_of, "worst_of", least=1,
                                          example="--worst-of 10"),
                    seed=whole_number(self.seed, "seed", least=0, example="--seed 0"))
        for name, value in read.items():
            object.__setattr__(self, name, value)
        if self.worst_of > _MOST_POINTS:
            raise UsageError(f"--worst-of must be at most {_MOST_POINTS}",
                             seen=f"it is {self.worst_of}", hint="type for example --worst-of 10")
        self._check_extent()

    def _check_extent(self) -> None:
        """Require several points in each direction in which the attack moves, and one elsewhere."""
        across, along, turns = self.grid
        for name, extent, several in (("translation", self.translation, across * along > 1),
                                      ("rotation", self.rotation, turns > 1)):
            if several != (extent > 0):
                raise UsageError(f"the {name}s of --grid must be several exactly where "
                                 f"--{name} is above 0",
                                 seen=f"--grid is {across}x{along}x{turns} and --{name} is "
                                      f"{extent:g}",
                                 hint="give 1 in --grid for what must not move, and 0 as its "
                                      "extent")

    @property
    def side(self) -> float:
        """Part of the side that is shown: at any angle its corners stay inside the shifted image.
        """
        return math.sqrt(0.5) - math.sqrt(2) * self.translation if self.fill == "crop" else 1.0

    def points(self) -> list[Move]:
        """Return the grid's points, the farthest from the untouched image first."""
        halves = [count // 2 for count in self.grid]
        steps = [[(step / half if half else 0.0) for step in range(-half, half + 1)]
                 for half in halves]
        parts = sorted(product(*steps), key=lambda part: (-sum(x * x for x in part), part))
        return [Move(self.rotation * turn, self.translation * right, self.translation * down)
                for right, down, turn in parts]

    def draws(self, image: str, points: Sequence[Move]) -> list[Move]:
        """Return the points drawn for an image, each independently from the whole grid."""
        return [points[hashed(self.seed, "spatial", image, number) % len(points)]
                for number in range(self.worst_of)]

    def as_dict(self) -> dict[str, object]:
        """Return plain values for a run's specification."""
        return {"angles": list(self.angles), "rotation": self.rotation,
                "translation": self.translation, "grid": list(self.grid),
                "worst_of": self.worst_of, "fill": self.fill, "seed": self.seed}


def _angles(value: Any) -> tuple[float, ...]:
    """Return angles given as numbers, as a list of them in text, or as START:STOP:STEP."""
    try:
        angles = _spelled(value) if isinstance(value, str) else [Fraction(each) for each in value]
    except (TypeError, ValueError, OverflowError):
        angles = []
    if not 0 < len(set(angles)) == len(angles) <= _MOST_ANGLES or max(map(abs, angles)) > 360:
        raise _refused("--angles", f"1 to {_MOST_ANGLES} different angles from -360 to 360 degrees",
                       value, "-180:180:15")
    return tuple(sorted(map(float, angles)))


def _spelled(text: str) -> list[Fraction]:
    if ":" not in text:
        return [_fraction(part) for part in text.split(",")]
    start, stop, step = map(_fraction, text.split(":"))
    if step <= 0 or not 0 <= (stop - start) / step <= _MOST_ANGLES:
        raise ValueError(text)
    return [start + step * number for number in range((stop - start) // step + 1)]


def _fraction(text: str) -> Fraction:
    """Return a decimal number as it is written, or one divided by another; raises ValueError."""
    top, slash, bottom = text.strip().partition("/")
    parts = [top, bottom] if slash else [top]
    if any(as_number(part) is None for part in parts) or (slash and not Fraction(bottom)):
        raise ValueError(text)
    return Fraction(top) / Fraction(bottom or "1")


def _within(name: str, value: Any, most: float, example: str) -> float:
    """Return a number from 0 to ``most``, which may be text such as 3/32."""
    try:
        number = float(_fraction(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not 0 <= number <= most:
        cropped = " with --fill crop" if most == 0.25 else ""
        raise _refused(name, f"a number from 0 to {most:g}{cropped}", value, example)
    return number


def _grid(value: Any) -> tuple[int, int, int]:
    text = value if isinstance(value, str) else "x".join(map(str, _listed(value)))
    counts = [int(part) for part in text.split("x")] \
        if re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}x[0-9]{1,5}", text) else [0]
    if any(count % 2 == 0 for count in counts) or math.prod(counts) > _MOST_POINTS:
        raise _refused("--grid", "three odd numbers of horizontal translations, vertical ones and "
                       f"rotations, at most {_MOST_POINTS} points in all", value, "5x5x31")
    across, along, turns = counts
    return across, along, turns


def _listed(value: Any) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _refused(name: str, rule: str, value: object, example: str) -> UsageError:
    return UsageError(f"{name} must be {rule}", seen=f"it is {shown_value(value)}",
                      hint=f"type for example {name} {example}")


def warped(pixels: Tensor, moves: Sequence[Move], *, fill: str, side: float = 1.0) -> Tensor:
    """Return images (B, 3, S, S), each shifted and then turned about the centre by its own move.

    Bilinear, except that quarter turns without a shift are exact permutations of the pixels.

    Args:
        pixels: (B, 3, S, S), float32 in [0, 1], and so is the result.
        moves: one for each image.
        fill: one of FILLS.
        side: part of the side that is shown, enlarged to S.
    """
    exact = {row: int(move.rotation % 360) // 90 for row, move in enumerate(moves)
             if move[1:] == STILL[1:] and move.rotation % 90 == 0}
    whole = pixels if side == 1 else _sampled(pixels, [STILL] * len(moves), fill, side)
    result = whole.clone() if len(exact) == len(moves) else _sampled(pixels, moves, fill, side)
    for turns in set(exact.values()):
        rows = [row for row, its in exact.items() if its == turns]
        result[rows] = whole[rows].rot90(turns, (-2, -1))
    return result


def _sampled(pixels: Tensor, moves: Sequence[Move], fill: str, side: float) -> Tensor:
    """Look up for each pixel of the result where it was: turned back, then shifted back.

    Every operation works on each number by itself and in float64, so that no batch changes a bit.
    """
    import torch
    from torch.nn.functional import grid_sample
    size = pixels.shape[-1]
    # Centres of the pixels where -1 and 1 are the edges of the image; down is positive.
    line = ((torch.arange(size, dtype=torch.float64) * 2 + 1) / size - 1) * side
    turns = [math.radians(move.rotation % 360) for move in moves]
    numbers = [[math.cos(turn), math.sin(turn), 2 * move.right, 2 * move.down]
               for turn, move in zip(turns, moves, strict=True)]
    cos, sin, right, down = torch.tensor(numbers, dtype=torch.float64)[:, :, None, None].unbind(1)
    x, y = line.view(1, -1), line.view(-1, 1)
    places = torch.stack([cos * x - sin * y - right, sin * x + cos * y - down], dim=-1)
    mode = {"black": "zeros", "reflect": "reflection", "crop": "border"}[fill]
    return grid_sample(pixels, places.float().to(pixels.device), mode="bilinear",
                       padding_mode=mode, align_corners=False).clamp(0, 1)


class Answer(NamedTuple):
    """What a model says of one image under one move: class, probability of the label."""

    pred: int
    prob_label: float
    finite: bool


_Asked = tuple[int, Move | None]


class Answers:
    """A model's answers to the images of a batch under moves; None is the image as it came.

    Each is asked for once, so that all measures that share one agree. A pass has at most as many
    images as the batch.

    Args:
        model: maps pixels (B, 3, S, S) to logits (B, K).
        pixels: (B, 3, S, S), float32 in [0, 1].
        labels: int64 (B,).
        settings: say what fills corners and how much of the images is shown.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor,
                 settings: SpatialSettings) -> None:
        self._model, self._pixels, self._labels = model, pixels, labels
        self._settings = settings
        self._known: dict[_Asked, Answer] = {}

    def ask(self, asked: Sequence[_Asked]) -> list[Answer]:
        """Return the answers for (row of the batch, move), whether finite or not."""
        pairs = [(row, move and move._replace(rotation=move.rotation % 360)) for row, move in asked]
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        size = len(self._pixels)
        for start in range(0, len(missing), size):
            part = missing[start:start + size]
            self._known.update(zip(part, self._answered(part), strict=True))
        return [self._known[pair] for pair in pairs]

    def sound(self, moves: Sequence[Move | None]) -> list[Answer]:
        """Return the answers for one move per image; raises NonFiniteError where one is none."""
        return [sound(answer) for answer in self.ask(list(enumerate(moves)))]

    def first_wrong(self, sequences: Sequence[Sequence[Move]]) -> list[int | None]:
        """Return for each image the place in its sequence at which it is first misclassified.

        Where few images are left, each is asked about several moves at once; what stands behind
        the place found changes nothing. Raises NonFiniteError where an answer before it is none.
        """
        found: list[int | None] = [None] * len(sequences)
        labels, start = self._labels.tolist(), 0
        left = list(range(len(sequences)))
        while left:
            stop = start + len(sequences) // len(left)
            asked = [(row, move) for row in left for move in sequences[row][start:stop]]
            said = iter(zip(asked, self.ask(asked), strict=True))
            for row in left:
                answers = [next(said)[1] for _ in sequences[row][start:stop]]
                found[row] = _first(answers, labels[row], start)
            left = [row for row in left if found[row] is None and stop < len(sequences[row])]
            start = stop
        return found

    def _answered(self, asked: Sequence[_Asked]) -> Iterator[Answer]:
        import torch
        rows = [row for row, _ in asked]
        pixels, settings = self._pixels[rows], self._settings
        moved = [place for place, (_, move) in enumerate(asked) if move is not None]
        moves = [move for _, move in asked if move is not None]
        with torch.no_grad():
            if moves:
                pixels[moved] = warped(pixels[moved], moves, fill=settings.fill,
                                       side=settings.side)
            logits = self._model(pixels)
        probs = logits.softmax(dim=1).gather(1, self._labels[rows].unsqueeze(1)).squeeze(1)
        return map(Answer, logits.argmax(dim=1).tolist(), probs.tolist(),
                   logits.isfinite().all(dim=1).tolist())


def _first(answers: Sequence[Answer], label: int, start: int) -> int | None:
    return next((place for place, answer in enumerate(answers, start)
                 if sound(answer).pred != label), None)


def sound(answer: Answer) -> Answer:
    """Return an answer that is one; raises NonFiniteError for others."""
    if not answer.finite:
        raise NonFiniteError("the model's logits must be finite", seen="some are NaN or infinite",
                             hint="check the weights and the precision")
    return answer
