"""Accuracy against angle, and the attack by rotation and translation."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import affine_transform
from torch import Tensor, nn

import sanrobust
from conftest import Command
from sanrobust.experiments.spatial.attack import STILL, Move, SpatialSettings, warped
from sanrobust.data.loader import Batch, FailedImage
from sanrobust.errors import NonFiniteError, UsageError
from sanrobust.evaluate import in_order
from sanrobust.experiments.spatial import (ATTACKS, SPATIAL, SpatialMeasurement, draw_curves,
                                           spatial_outcomes, spatial_summaries)
from sanrobust.runs import find_runs
from sanrobust.tables import make_table, to_markdown

SIZE = 16
STILL_OPTIONS = ("--grid", "1x1x1", "--rotation", "0", "--translation", "0")
SMALL = SpatialSettings(angles=(-30, 0, 30), grid=(3, 3, 5), worst_of=4)


def noise(count: int, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


class Side(nn.Module):
    """Answers by where an image is bright: class 0 left, 1 right, 2 above, 3 below."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        parts = (images[..., :half], images[..., half:], images[..., :half, :],
                 images[..., half:, :])
        return torch.stack([part.mean((1, 2, 3)) for part in parts], dim=1)


class Lost(Side):
    """Gives no numbers for images that lost more than ``most`` of their brightness."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.least = 1 - most

    def forward(self, images: Tensor) -> Tensor:
        lost = images.mean((1, 2, 3)) < self.least * 0.5
        return super().forward(images).masked_fill(lost.unsqueeze(1), math.nan)


def images(count: int = 9) -> Batch:
    """Return noise with labels that Side gives to most of it."""
    pixels = noise(count)
    return Batch(tuple(f"image{row}" for row in range(count)), Side()(pixels).argmax(1), pixels)


def measured(batch: Batch, settings: SpatialSettings = SMALL, model: nn.Module | None = None
             ) -> pd.DataFrame:
    columns = SpatialMeasurement(settings).measure(model or Side(), batch)
    return pd.DataFrame(in_order(columns, batch.ids))


def records_of(command: Command, out: Path, name: str, *words: object) -> pd.DataFrame:
    result = command(name, "--out", out, *words)
    assert result.exit_code == 0, result.output
    return pd.concat([run.records().assign(model=run.spec["model"])
                      for run in find_runs(out, name).runs])


# Transformations

@pytest.mark.parametrize("fill", ["black", "reflect", "crop"])
def test_quarter_turns_are_exact_permutations_beside_any_other_move(fill: str) -> None:
    side = 0.6 if fill == "crop" else 1.0
    whole = warped(noise(1), [STILL], fill=fill, side=side)
    assert fill == "crop" or whole.equal(noise(1))
    for turns in range(-4, 5):
        moves = [Move(90.0 * turns), Move(17.0), Move(90.0, 0.1)]
        turned = warped(noise(1).expand(3, -1, -1, -1), moves, fill=fill, side=side)
        assert turned[:1].equal(torch.rot90(whole, turns, (-2, -1)))


def test_positive_angles_turn_anticlockwise_and_shifts_come_first() -> None:
    dot = torch.zeros(1, 3, 5, 5)
    dot[..., 2, 3] = 1  # right of the centre

    def brightest(move: Move) -> tuple[int, int]:
        place = int(warped(dot, [move], fill="black")[0, 0].argmax())
        return place // 5, place % 5

    assert brightest(Move(80.0)) == (1, 2)
    assert brightest(Move(0.0, right=0.2)) == (2, 4)
    assert brightest(Move(0.0, down=0.2)) == (3, 3)
    assert brightest(Move(90.0, right=0.2)) == (0, 2)


@pytest.mark.parametrize(("fill", "mode"), [("black", "grid-constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("move", [Move(30.0), Move(-77.5, 0.1, -0.05), Move(180.0, 0.3, 0.3)])
def test_images_are_those_of_scipy(fill: str, mode: str, move: Move) -> None:
    turn, centre = math.radians(move.rotation), np.full(2, (SIZE - 1) / 2)
    # Row and column of the source of each pixel.
    back = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    offset = centre - back @ centre - SIZE * np.array([move.down, move.right])
    expected = [affine_transform(channel, back, offset, order=1, mode=mode)
                for channel in noise(1)[0].double().numpy()]
    got = warped(noise(1), [move], fill=fill)[0]
    # Places in float32 are off by about 1e-6 of a pixel, and so are the weights.
    np.testing.assert_allclose(got, np.stack(expected), atol=2e-5)


def test_only_the_crop_shows_nothing_from_outside() -> None:
    settings = SpatialSettings(fill="crop", grid="5x5x7", rotation=180)
    moves = [*settings.points(), *map(Move, settings.angles)]
    plain = torch.ones(len(moves), 3, SIZE, SIZE)
    assert warped(plain, moves, fill="crop", side=settings.side).min() > 1 - 1e-6
    assert warped(plain, moves, fill="black").min() == 0
    assert 0.57 < settings.side < 0.58


def test_the_grid_has_the_untouched_image_and_begins_with_the_farthest_points() -> None:
    points = SpatialSettings().points()
    assert len(points) == len(set(points)) == 775 and points[-1] == STILL
    assert {abs(part) for part in points[0]} == {30.0, 3 / 32}


# Records

@pytest.mark.parametrize("model", ["resnet26.digits", "san10-pair.digits"])
def test_quarter_turns_are_those_of_rotate_image_by_image(command: Command, tmp_path: Path,
                                                          model: str) -> None:
    words = ("-m", model, "--num-samples", 40)
    turned = records_of(command, tmp_path, "spatial", *words, "--angles", "0,90,180,270,-90",
                        *STILL_OPTIONS)
    rotated = records_of(command, tmp_path, "rotate", *words)
    for view, angles in {"none": (0,), "cw270": (90,), "cw180": (180,), "cw90": (270, -90)}.items():
        theirs = rotated[rotated["view"] == view].set_index("image")
        for angle in angles:
            ours = turned[turned["angle"] == angle].set_index("image")
            for column in ("pred", "prob_label"):
                assert ours[column].equals(theirs[column]), (view, angle, column)


@pytest.mark.parametrize("fill", ["black", "crop"])
def test_grid_is_below_worst_is_below_natural_and_random_on_every_image(
        command: Command, tmp_path: Path, fill: str) -> None:
    records = records_of(command, tmp_path, "spatial", "-m", "resnet26.digits", "-m",
                         "san10-pair.digits", "--num-samples", 60, "--grid", "3x3x5",
                         "--worst-of", 3, "--angles", 0, "--fill", fill)
    for _, rows in records.groupby("model"):
        natural, random, worst, grid = (spatial_outcomes(rows, measure=name) for name in ATTACKS)
        assert (grid <= worst).all() and (worst <= natural).all() and (worst <= random).all()
        assert grid.mean() < worst.mean() < natural.mean()


def test_no_batch_size_and_no_worker_changes_a_record(command: Command, tmp_path: Path) -> None:
    def records(size: int, workers: int) -> pd.DataFrame:
        return records_of(command, tmp_path / f"{size}", "spatial", "-m", "resnet26.digits", "-m",
                          "san10-pair.digits", "--num-samples", 8, "--grid", "3x1x3",
                          "--angles", "0,40", "-b", size, "-j", workers)
    first = records(1, 0)
    for size, workers in ((7, 2), (64, 0)):
        pd.testing.assert_frame_equal(records(size, workers), first)


def test_an_image_has_the_same_records_in_any_order_and_company() -> None:
    batch, whole = images(), measured(images())
    for rows in ([4], [8, 2, 5], list(range(8, -1, -1))):
        part = measured(batch.part(rows))
        expected = pd.concat([whole[whole["image"] == batch.ids[row]] for row in rows])
        pd.testing.assert_frame_equal(part, expected.reset_index(drop=True))


def test_the_attack_finds_the_first_point_that_fools_the_model() -> None:
    batch, points = images(), SMALL.points()
    rows = measured(batch).set_index(["measure", "image"]).sort_index()
    for image, label, pixels in zip(batch.ids, batch.labels.tolist(), batch.pixels):
        drawn = list(dict.fromkeys((STILL, *SMALL.draws(image, points))))
        order = list(dict.fromkeys((*drawn, *points)))
        preds = [int(Side()(warped(pixels[None], [move], fill="black")).argmax())
                 for move in order]
        for name, length in (("worst", len(drawn)), ("grid", len(points))):
            row = rows.loc[[(name, image)]].iloc[0]
            wrong = [place for place in range(length) if preds[place] != label]
            assert row["tried"] == (wrong[0] + 1 if wrong else length)
            assert row["pred"] == (preds[wrong[0]] if wrong else label)
            found = (row["rotation"], row["right"], row["down"])
            assert found == order[wrong[0]] if wrong else pd.isna(row["rotation"])


def test_draws_belong_to_seed_and_image() -> None:
    points = SMALL.points()
    assert SMALL.draws("a", points) == replace(SMALL, worst_of=9).draws("a", points)[:4]
    assert SMALL.draws("a", points) != SMALL.draws("b", points)
    assert SMALL.draws("a", points) != replace(SMALL, seed=1).draws("a", points)


@pytest.mark.parametrize("rows", [[0], [0, 1, 2], list(range(9))])
def test_what_stands_behind_the_point_found_cannot_fail_an_image(rows: Sequence[int]) -> None:
    settings = SpatialSettings(angles=(0,), grid=(3, 3, 3), worst_of=1, translation=0.25)
    batch = images().part(rows)
    batch = replace(batch, labels=(batch.labels + 1) % 4)  # wrong as they are
    with pytest.raises(NonFiniteError):  # of random, which is measured in any case
        measured(batch, settings, Lost(-1))
    records = measured(batch, replace(settings, rotation=0.5, grid=(3, 3, 3)), Lost(0.9))
    assert records.loc[records["measure"] == "grid", "tried"].tolist() == [1] * len(rows)


def test_no_numbers_before_the_point_found_fail_the_image() -> None:
    with pytest.raises(NonFiniteError):
        measured(Batch(("a",), torch.tensor([0]), torch.ones(1, 3, SIZE, SIZE) / 2),
                 SpatialSettings(angles=(0,), worst_of=1, translation=0.4), Lost(0.5))


# Settings

@pytest.mark.parametrize(("text", "angles"), [
    ("-180:180:90", (-180, -90, 0, 90, 180)), ("0:1:0.4", (0, 0.4, 0.8)), ("5", (5,)),
    ("90, 0,-1.5", (-1.5, 0, 90)), ([30, 0.0], (0, 30))])
def test_angles_are_a_list_or_a_range(text: object, angles: tuple[float, ...]) -> None:
    assert SpatialSettings(angles=text).angles == angles


def test_settings_have_one_spelling() -> None:
    typed = SpatialSettings(translation="3/32", grid="5x5x31", rotation="30")
    given = SpatialSettings(translation=0.09375, grid=[5, 5, 31], rotation=30)
    assert typed == given == SpatialSettings()
    assert given.as_dict()["grid"] == [5, 5, 31]


@pytest.mark.parametrize("settings", [
    {"angles": ()}, {"angles": "0:10:0"}, {"angles": "10:0:5"}, {"angles": "0,0"},
    {"angles": "0:361:1"}, {"angles": "a"}, {"angles": 5}, {"angles": "1:2"},
    {"angles": [math.nan]}, {"angles": "0:1:1e-9"}, {"rotation": 181}, {"rotation": math.nan},
    {"rotation": True}, {"translation": "3/0"}, {"translation": "1"}, {"translation": -0.1},
    {"translation": 0.3, "fill": "crop"}, {"grid": "4x5x31"}, {"grid": "5x5"}, {"grid": (5, 5)},
    {"grid": "5x5x-1"}, {"grid": "999x999x99"}, {"grid": 5}, {"worst_of": 0}, {"worst_of": 1.5},
    {"seed": -1}, {"fill": "blak"}, {"fill": None}, {"translation": 0}, {"rotation": 0},
    {"grid": "1x1x31"}, {"grid": "5x5x1"}])
def test_what_cannot_be_meant_is_refused_in_a_sentence(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        SpatialSettings(**settings)
    assert caught.value.rule and caught.value.seen and caught.value.hint


def test_a_command_line_that_cannot_be_meant_names_its_option(command: Command) -> None:
    for words, said in ((("--angles", "x"), "--angles must be"), (("--fill", "blak"), "black?"),
                        (("--grid", "2x2x2"), "--grid must be"),
                        (("--translation", "0"), "--translation is 0"),
                        (("--worst-of", "0"), "--worst-of must be")):
        result = command("spatial", *words)
        assert result.exit_code == 2 and said in result.output, result.output


# Summary, table and plot

def frame(preds: dict[str, Sequence[int]], angles: Sequence[float]) -> pd.DataFrame:
    """Return records of images with label 0 and a failed one, from the classes by measure."""
    names = ["angle"] * len(angles) + ["clean", *ATTACKS]
    places = [*angles, *[None] * 5]
    rows = [{"image": image, "label": 0, "measure": name, "angle": angle, "pred": pred,
             "error": None} for image, said in preds.items()
            for name, angle, pred in zip(names, places, said, strict=True)]
    failed = SpatialMeasurement(SpatialSettings(angles=tuple(angles))).failed(
        FailedImage("lost", 0, "damaged"))
    return pd.concat([pd.DataFrame(rows), pd.DataFrame(failed)], ignore_index=True)


RECORDS = frame({"a": [0, 0, 0, 0, 0, 0, 0], "b": [0, 1, 0, 0, 1, 1, 1],
                 "c": [0, 1, 0, 0, 0, 1, 1], "d": [1, 1, 0, 1, 1, 1, 1]}, [0.0, 45.0])


def test_the_summary_counts_images_at_each_angle_and_under_each_attack() -> None:
    upright, turned = spatial_summaries(RECORDS)
    assert (upright["angle"], upright["angle_top1"], upright["angle_top1_all"]) == (0, 75, 60)
    assert (turned["angle"], turned["angle_top1"]) == (45, 25)
    for row in (upright, turned):
        assert (row["n"], row["failed"], row["clean_top1"]) == (4, 1, 100)
        assert [row[f"{name}_top1"] for name in ATTACKS] == [75, 50, 25, 25]
    assert float(turned["grid_top1_low"]) < 25 < float(turned["grid_top1_high"])


def test_outcomes_are_by_image_and_unknown_where_it_failed() -> None:
    turned = spatial_outcomes(RECORDS, measure=45)
    assert turned.index[turned.fillna(False)].tolist() == ["a"]
    assert turned.index[turned.isna()].tolist() == ["lost"]
    assert spatial_outcomes(RECORDS, measure="random").sum() == 2


def rows(model: str = "resnet26.digits", **changed: object) -> list[dict[str, object]]:
    settings = {**SpatialSettings(**changed).as_dict()}
    del settings["angles"]
    return [{"model": model, "data": "digits", **summary, **settings}
            for summary in spatial_summaries(RECORDS)]


def test_the_caption_says_what_was_done() -> None:
    text = to_markdown(make_table(SPATIAL, rows(fill="crop", worst_of=7)))
    for words in ("up to 3/32 of the side", "up to 30° either way", "31 = 775", "k = 7",
                  "central 57.5 %", "not cropped: ResNet26 100.0", "anticlockwise"):
        assert words in text
    both = to_markdown(make_table(SPATIAL, [*rows(), *rows(fill="reflect")]))
    assert "±30° ±3/32 black" in both and "mirrored at its edges" in both


def test_the_plot_has_a_line_per_model_and_fill() -> None:
    table = make_table(SPATIAL, [*rows(), *rows(worst_of=3), *rows(fill="reflect"),
                                 *rows("mine:net")])
    figure = draw_curves(table.rows)
    assert len(figure.axes) == 2
    labels = [line.get_label() for panel in figure.axes for line in panel.lines]
    assert labels == ["ResNet26, fill black", "ResNet26, fill reflect", "mine:net, fill black"]
    alike = draw_curves(make_table(SPATIAL, [*rows(), *rows("resnet26.mine")]).rows)
    assert [line.get_label() for line in alike.axes[0].lines] == ["resnet26.digits",
                                                                  "resnet26.mine"]


def test_angles_of_several_runs_become_one_curve_with_equal_bytes(command: Command,
                                                                  tmp_path: Path) -> None:
    words = ("-m", "san10-pair.digits", "--num-samples", 8, *STILL_OPTIONS, "--out", tmp_path)
    for angles in ("0,90", "-45,90"):
        assert command("spatial", *words, "--angles", angles).exit_code == 0
    pictures = []
    for _ in range(2):
        assert command("table", "spatial", "--out", tmp_path).exit_code == 0
        pictures.append([(tmp_path / f"spatial_angles.{kind}").read_bytes()
                         for kind in ("svg", "png")])
    assert pictures[0] == pictures[1]
    assert pd.read_csv(tmp_path / "spatial.csv")["angle"].tolist() == [0, -45, 90]


def test_it_is_a_function_too(tmp_path: Path) -> None:
    table = sanrobust.spatial("san10-pair.digits", angles=[0, 90], grid=(1, 1, 3), translation=0,
                              data=sanrobust.DataConfig(num_samples=5), out=tmp_path)
    assert table["angle"].tolist() == [0, 90] and table["n"].tolist() == [5, 5]


def test_naming_the_experiment_loads_nothing_heavy() -> None:
    code = ("import sys, sanrobust.experiments.spatial; sys.exit(str("
            "{'torch', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)).replace('set()', ''))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
