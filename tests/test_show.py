"""Attention pictures: the weights are the layer's, they lie where they act, and choices are kept.

An independent check runs through all of it: summing a layer's values under the weights as they
are placed on the map must give the layer's output.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import Command
from image_files import save_noise
from oracles import offsets, reflect
from sanrobust.attention_maps import (Attention, AttentionLayer, AttentionMap, attention_layers,
                                      pixels_per_position, read_attention)
from sanrobust.attention_pictures import Selection, draw, plan, write_pictures
from sanrobust.data.decode import decode
from sanrobust.data.transforms import to_pixels
from sanrobust.errors import UsageError
from sanrobust.kernels.plain import Window
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.resolve import create_model

PAIR = "san10-pair.digits"
MODELS = (PAIR, "san10-patch.digits", "san10-patch(relation=star).untrained-small",
          "san10-scalar(heads=2).untrained-small", "san10-sasa.untrained-small",
          "sasa26.untrained-small")


@pytest.fixture(scope="module")
def digit() -> Attention:
    return read_attention(PAIR)


def a_map(weight: Tensor, window: Window, *, size: tuple[int, int], scale: int = 4,
          channels: int = 8) -> AttentionMap:
    layer = AttentionLayer(0, 0, "layer0.0.sam", nn.Identity())
    return AttentionMap(layer, weight, window, size, scale, channels)


def observed(model: Classifier, name: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The values (O, H, W) and the output (O, H', W') of a layer on one image."""
    seen = []
    layer = model.network.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output)))
    with torch.no_grad():
        model(pixels.unsqueeze(0))
        handle.remove()
        (inputs, output), = seen
        return layer.conv3(inputs[0])[0], output[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_placed_weights_give_the_output_of_every_layer(name: str) -> None:
    model = create_model(name)
    attention = read_attention(model, "digits/0007")
    assert len(attention.maps) == (4 if name.startswith("sasa") else 5)
    for shown in attention.maps:
        value, output = observed(model, shown.layer.name, attention.pixels)
        height, width = output.shape[1:]
        for position in [(0, 0), (0, width - 1), (height // 2, width // 2), (height - 1, 1)]:
            placed = shown.placed(position).nan_to_num()
            expected = torch.stack([(placed[c % shown.groups] * value[c]).sum()
                                    for c in range(shown.channels)])
            # float32 sums of up to 49 products.
            assert (output[:, *position] - expected).abs().max() < 1e-4 * (1 + expected.abs().max())


@pytest.mark.parametrize("position", [(0, 0), (1, 4), (3, 2), (5, 4)])
def test_neighbours_beyond_the_border_lie_where_reflection_puts_them(position: tuple[int, int]
                                                                     ) -> None:
    shown = a_map(torch.zeros(1, 25, 6, 5), Window(5), size=(6, 5))
    y, x = position
    assert shown.neighbours_of(position) == tuple(
        (reflect(y + dy, 6), reflect(x + dx, 5)) for dy, dx in offsets(5))


def test_neighbours_in_zero_padding_lie_nowhere() -> None:
    weight = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 4, 4)
    shown = a_map(weight, Window(3, padding_mode="zeros"), size=(4, 4))
    assert shown.neighbours_of((0, 3)) == (None, None, None, (0, 2), (0, 3), None, (1, 2), (1, 3),
                                           None)
    placed = shown.placed((0, 3))[0]
    assert placed.isfinite().sum() == 4 and placed[0, 3] == 4 and placed[1, 2] == 6


def test_weights_reflected_onto_one_place_add_up() -> None:
    weight = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 4, 4)
    placed = a_map(weight, Window(3), size=(4, 4)).placed((0, 0))[0]
    assert placed[1, 1] == 0 + 2 + 6 + 8 and placed[0, 0] == 4
    assert placed.isfinite().sum() == 4 and placed.nansum() == 36


def test_a_layer_with_a_stride_looks_around_every_second_position() -> None:
    shown = a_map(torch.zeros(1, 9, 4, 4), Window(3, stride=2), size=(8, 8), scale=4)
    assert shown.output_at((20, 9)) == (2, 1) and shown.centre_of((2, 1)) == (4, 2)
    assert shown.neighbours_of((2, 1))[0] == (3, 1)


@pytest.mark.parametrize(("side", "positions", "scale"), [
    (224, 112, 2), (224, 7, 32), (150, 75, 2), (150, 37, 4), (150, 18, 8), (150, 4, 32),
    (75, 38, 2), (75, 19, 4), (75, 10, 8), (32, 32, 1)])
def test_a_position_stands_for_the_pixels_that_were_reduced_to_it(side: int, positions: int,
                                                                  scale: int) -> None:
    assert pixels_per_position(side, positions) == scale


def test_pixels_that_pooling_dropped_belong_to_the_last_position() -> None:
    shown = a_map(torch.zeros(1, 9, 18, 18), Window(3), size=(18, 18), scale=8)
    assert shown.output_at((149, 0)) == (17, 0)


def test_the_strongest_groups_come_first() -> None:
    weight = torch.full((3, 9, 4, 4), 1 / 9)
    weight[2, :, 1, 1] = torch.tensor([1.0] + [0.0] * 8)
    weight[1, :, 1, 1] = torch.tensor([0.5, -0.5] + [0.0] * 7)
    shown = a_map(weight, Window(3), size=(4, 4))
    assert shown.strongest([(1, 1)], 2) == (2, 1) and shown.strongest([(0, 0)], 9) == (0, 1, 2)
    assert shown.signed and not replace(shown, weight=weight.abs()).signed


def test_the_array_has_a_square_footprint_row_by_row(digit: Attention) -> None:
    shown = digit.maps[1]
    assert shown.array.shape == (1, 5, 5, 16, 16)
    assert shown.array[0, 1, 3, 2, 6] == shown.weight[0, 8, 2, 6]
    # Pairwise weights are a softmax over the footprint.
    assert np.allclose(shown.array.sum((1, 2)), 1, atol=1e-5)


def test_the_model_gets_the_image_as_it_is_preprocessed_for_it(tmp_path: Path) -> None:
    path = save_noise(tmp_path / "noise.png", (50, 40))
    model = create_model(PAIR)
    attention = read_attention(model, path)
    pixels = to_pixels(decode(path), model.preprocessing)
    assert torch.equal(attention.pixels, pixels) and attention.image == "noise.png"
    assert torch.allclose(attention.probabilities, model(pixels.unsqueeze(0))[0].softmax(0))


def test_reading_attention_leaves_no_hook_behind() -> None:
    model = create_model(PAIR)
    read_attention(model)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("chosen", "expected"), [
    ({}, [(0, 1), (1, 0), (2, 1), (3, 3), (4, 0)]),
    ({"stages": [3, 0]}, [(3, 3), (0, 1)]),
    ({"blocks": [0]}, [(stage, 0) for stage in range(5)]),
    ({"stages": [3], "blocks": [2, 0, 2]}, [(3, 2), (3, 0)])])
def test_stages_and_blocks_are_those_chosen(chosen: dict[str, Any],
                                            expected: list[tuple[int, int]]) -> None:
    maps = read_attention(PAIR, **chosen).maps
    assert [(shown.layer.stage, shown.layer.block) for shown in maps] == expected


def test_layers_without_numbered_names_are_blocks_of_stage_0() -> None:
    san = create_model(PAIR).network
    network = nn.Sequential(san.get_submodule("layer0.0"), san.get_submodule("layer1.0.sam"))
    assert [(layer.stage, layer.block, layer.name) for layer in attention_layers(network)] == [
        (0, 0, "0.sam"), (0, 1, "1")]


def test_a_channel_is_drawn_by_the_group_that_weighs_it(digit: Attention) -> None:
    shown = digit.maps[4]
    assert (shown.groups, shown.channels) == (8, 64)
    assert Selection(channels=(37, 5, 2)).groups_of(shown, [(0, 0)]) == (5, 2)
    assert Selection(groups=(3,), channels=(37,)).groups_of(shown, [(0, 0)]) == (3, 5)


def test_pictures_and_table_hold_what_was_chosen(digit: Attention, tmp_path: Path) -> None:
    chosen = Selection(positions=((0, 31), (16, 16)), count=2)
    *pictures, table = write_pictures(digit, tmp_path, chosen)
    assert [path.name for path in pictures] == [
        f"san10-pair.digits-0001-stage{stage}-block{block}.png"
        for stage, block in [(0, 1), (1, 0), (2, 1), (3, 3), (4, 0)]]
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
    rows = pd.read_csv(table)
    assert rows.groupby("stage").group.nunique().tolist() == [1, 1, 2, 2, 2]
    sums = rows.groupby(["stage", "group", "pixel_y", "pixel_x"]).weight.sum()
    assert len(sums) == 2 * 8 and np.allclose(sums, 1, atol=1e-5)
    row = rows[(rows.stage == 4) & (rows.pixel_y == 0) & (rows.neighbour == 2)].iloc[0]
    assert (row.y, row.x, row.dy, row.dx) == (0, 3, -1, 1)
    assert (row.neighbour_y, row.neighbour_x) == (1, 2)
    assert row.weight == pytest.approx(float(digit.maps[4].weight[row.group, 2, 0, 3]), rel=1e-6)


def test_weights_are_drawn_on_the_pixels_that_they_act_on(digit: Attention) -> None:
    last = replace(digit, maps=digit.maps[4:])
    each, = plan(last, Selection(positions=((0, 31),), groups=(5,)))
    figure = draw(last, each)
    heat = figure.axes[1].images[-1]
    assert tuple(heat.get_extent()) == (0, 32, 32, 0) and heat.get_array().shape == (4, 4)
    assert np.array_equal(heat.get_array().filled(np.nan), each.shown.placed((0, 3))[5].numpy(),
                          equal_nan=True)
    assert heat.get_clim() == (0, pytest.approx(float(np.nanmax(heat.get_array()))))


def test_a_large_image_is_shown_whole_and_around_the_position() -> None:
    attention = read_attention("san10-pair.untrained", "digits/0007", stages=[2])
    each, = plan(attention, Selection(positions=((0, 223), (112, 112)), groups=(0,)))
    figure = draw(attention, each)
    whole, around, weights = figure.axes[:3]
    assert whole.get_xlim() == (0, 224) and whole.get_ylim() == (224, 0)
    # A footprint of 7 positions of 8 pixels, in a view of twice that, moved into the image.
    assert around.get_xlim() == weights.get_xlim() == (112, 224)
    assert around.get_ylim() == weights.get_ylim() == (112, 0)
    assert figure.axes[5].get_xlim() == (60, 172)


def test_signed_weights_have_a_scale_centred_at_zero() -> None:
    attention = read_attention("san10-patch.digits", stages=[1])
    figure = draw(attention, plan(attention, Selection())[0])
    low, high = figure.axes[2].images[-1].get_clim()
    assert low == -high < 0 and figure.axes[2].images[-1].get_cmap().name == "RdBu_r"


def test_all_positions_of_a_group_share_its_scale(digit: Attention) -> None:
    last = replace(digit, maps=digit.maps[4:])
    figure = draw(last, *plan(last, Selection(groups=(1,))))
    assert len({panel.images[-1].get_clim() for panel in figure.axes[1:6:2]}) == 1


def test_no_name_leads_out_of_the_folder(digit: Attention, tmp_path: Path) -> None:
    named = replace(digit, model="../../evil/..:x", image="/etc/../..", maps=digit.maps[:1])
    paths = write_pictures(named, tmp_path / "out", Selection())
    assert all(path.resolve().parent == tmp_path / "out" for path in paths)


def test_a_choice_that_a_later_map_has_not_writes_nothing(tmp_path: Path) -> None:
    attention = read_attention(PAIR, stages=[4, 0])
    with pytest.raises(UsageError, match="stage 0, block 1"):
        write_pictures(attention, tmp_path / "out", Selection(groups=(7,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("show",), ("show", "attention"), ("show", "claims")],
                         ids=" ".join)
def test_every_command_has_help(command: Command, words: tuple[str, ...]) -> None:
    result = command(*words, "--help")
    assert result.exit_code == 0 and result.output.startswith("Usage:")


@pytest.mark.parametrize(("arguments", "exit_code", "words"), [
    (("-m", "resnet26.digits"), 4, "resnet26.digits has none"),
    (("-m", "san01-pair"), 2, "did you mean san10-pair?"),
    (("--stage", "5"), 2, "choose from 0, 1, 2, 3, 4"),
    (("--block", "1"), 2, "stage 1 of san10-pair.digits, but it is 1"),
    (("--stage", "4", "--group", "8"), 2, "choose from 0 to 7"),
    (("--stage", "4", "--channel", "64"), 2, "choose from 0 to 63"),
    (("--position", "32,0"), 2, "32x32 image"),
    (("--position", "0,-1"), 2, "from 0 to 31"),
    (("--position", "5"), 2, "112,80"),
    (("--image", "no.png"), 3, "no.png: the file is missing"),
    (("--image", "text.png"), 3, "not an image"),
    (("--image", "digits/1797"), 3, "digits/1796"),
    (("--img-size", "8"), 4, "--img-size"),
    (("--checkpoint", "no.pth"), 4, "no.pth"),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else None)
def test_impossible_choices_are_one_sentence(command: Command, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch,
                                             arguments: tuple[str, ...], exit_code: int,
                                             words: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    result = command("show", "attention", *arguments)
    assert result.exit_code == exit_code and words in result.output, result.output
    assert not Path("results").exists()


def test_the_command_draws_an_image_with_a_checkpoint(command: Command, tmp_path: Path) -> None:
    image = save_noise(tmp_path / "bird.png", (40, 50))
    state = create_model("san10-patch.digits").network.state_dict()
    torch.save(state, tmp_path / "mine.pth")
    result = command("show", "attention", "-m", "san10-patch.untrained-small", "--checkpoint",
                     tmp_path / "mine.pth", "--image", image, "--stage", 3, "--head", 1,
                     "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = ["san10-patch.mine-bird-stage3-block3.png", "san10-patch.mine-bird.csv"]
    assert result.output.split() == [str(tmp_path / "out" / name) for name in names]
    drawn = pd.read_csv(tmp_path / "out" / names[1])
    trained = read_attention("san10-patch.digits", image, stages=[3]).maps[0]
    expected = trained.weight[1, :, 2, 2].numpy()
    here = drawn[(drawn.pixel_y == 16) & (drawn.pixel_x == 16)]
    assert np.allclose(here.weight, expected, rtol=1e-5)
