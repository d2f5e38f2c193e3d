"""The five views against matrices written out by hand."""

from __future__ import annotations

import pytest
import torch

from sanrobust.data.views import VIEWS, view
from sanrobust.errors import UnknownNameError

MATRICES = {
    "none": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    "cw90": [[7, 4, 1], [8, 5, 2], [9, 6, 3]],
    "cw180": [[9, 8, 7], [6, 5, 4], [3, 2, 1]],
    "cw270": [[3, 6, 9], [2, 5, 8], [1, 4, 7]],
    "updown": [[7, 8, 9], [4, 5, 6], [1, 2, 3]],
}


def test_the_views_are_those_of_the_table_in_its_order() -> None:
    assert tuple(VIEWS) == tuple(MATRICES)


@pytest.mark.parametrize("name", MATRICES)
def test_view_moves_every_channel_of_every_image_alike(name: str) -> None:
    images = torch.tensor(MATRICES["none"]).expand(2, 3, 3, 3)
    assert torch.equal(view(name, images), torch.tensor(MATRICES[name]).expand(2, 3, 3, 3))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("side", [1, 4, 7])
def test_view_only_permutes_the_values_of_an_image(name: str, side: int) -> None:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(view(name, images).flatten(2).sort().values, images.flatten(2).sort().values)


def test_four_quarter_turns_and_two_flips_bring_the_image_back() -> None:
    images = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    turned = images
    for _ in range(4):
        turned = view("cw90", turned)
    assert torch.equal(turned, images)
    assert torch.equal(view("updown", view("updown", images)), images)


def test_upside_down_is_not_the_half_turn() -> None:
    images = torch.arange(4.0).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert not torch.equal(view("updown", images), view("cw180", images))


def test_an_unknown_view_names_the_closest_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean cw90"):
        view("cw09", torch.zeros(1, 3, 2, 2))
