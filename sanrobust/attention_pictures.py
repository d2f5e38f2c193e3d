"""Attention weights drawn over the image: a picture per layer, and a table of what was drawn.

Letters: M weight groups, H and W positions of a feature map, S side of the image in pixels.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sanrobust.attention_maps import Attention, AttentionMap, Place
from sanrobust.errors import UsageError
from sanrobust.files import atomic_write, write_text
from sanrobust.harmless import guarded, plain_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("model", "image", "stage", "block", "group", "pixel_y", "pixel_x", "y", "x",
           "neighbour", "dy", "dx", "neighbour_y", "neighbour_x", "weight")

_PANEL_INCHES = 2.0
_LETTER_INCHES = 0.075  # of the title, on average
_DPI = 150
_VIEW = 2.0  # side of a view over the side of the footprint in it
_SMALLEST_VIEW = 16  # pixels
_OPACITY = 0.85
_BAR_HEIGHT = 0.05  # of a panel


@dataclass(frozen=True)
class Selection:
    """What to draw of each map.

    Attributes:
        positions: pixels (y, x) of the image whose attention is drawn; by default the centre, a
            point to its upper left, and one to its lower right.
        groups: weight groups (heads).
        channels: value channels, each of which stands for the group that weighs it.
        count: how many groups are drawn where neither is named, the strongest first.
    """

    positions: tuple[Place, ...] = ()
    groups: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    count: int = 4

    def pixels(self, side: int) -> tuple[Place, ...]:
        """Return the chosen pixels of an image; raises UsageError for one outside it."""
        for y, x in self.positions:
            if not (0 <= y < side and 0 <= x < side):
                raise UsageError(f"--position must lie in the {side}x{side} image of the model",
                                 seen=f"it is {y},{x}",
                                 hint=f"give row and column from 0 to {side - 1}")
        if self.positions:
            return tuple(dict.fromkeys(self.positions))
        return ((side // 2, side // 2), (side // 4, 3 * side // 8),
                (3 * side // 4, 5 * side // 8))

    def groups_of(self, shown: AttentionMap, positions: Sequence[Place]) -> tuple[int, ...]:
        """Return the groups to draw of a map; raises UsageError for one that it has not."""
        where = f"stage {shown.layer.stage}, block {shown.layer.block}"
        limits = (("group", self.groups, shown.groups), ("channel", self.channels, shown.channels))
        for name, chosen, limit in limits:
            for each in chosen:
                if not 0 <= each < limit:
                    raise UsageError(f"--{name} must be one of {where}", seen=f"it is {each}",
                                     hint=f"choose from 0 to {limit - 1}, or other stages with "
                                          "--stage")
        named = (*self.groups, *(channel % shown.groups for channel in self.channels))
        return tuple(dict.fromkeys(named)) or shown.strongest(positions, self.count)


@dataclass(frozen=True)
class Plan:
    """A map with what is drawn of it: pixels asked for, their output positions, groups."""

    shown: AttentionMap
    pixels: tuple[Place, ...]
    positions: tuple[Place, ...]
    groups: tuple[int, ...]


def write_pictures(attention: Attention, out: Path, selection: Selection = Selection()
                   ) -> tuple[Path, ...]:
    """Write a PNG per map and one CSV with every weight drawn; return their paths, CSV last.

    In the CSV, ``pixel_y`` and ``pixel_x`` are the pixel asked for, ``y`` and ``x`` the position
    of the map around which the layer looks, ``neighbour_y`` and ``neighbour_x`` the position on
    which the neighbour at distance ``dy``, ``dx`` falls (empty in zero padding).

    Raises UsageError for a position, group or channel that a map has not, OutputError when a file
    cannot be written.
    """
    plans = plan(attention, selection)
    stem = f"{_file_name(attention.model)}-{_file_name(Path(attention.image).stem)}"
    paths = []
    for each in plans:
        layer = each.shown.layer
        path = out / f"{stem}-stage{layer.stage}-block{layer.block}.png"
        picture = io.BytesIO()
        plain_names(draw(attention, each)).savefig(picture, format="png", dpi=_DPI)
        with atomic_write(path) as stream:
            stream.write(picture.getvalue())
        paths.append(path)
    table = out / f"{stem}.csv"
    write_text(table, _csv(attention, plans))
    return (*paths, table)


def plan(attention: Attention, selection: Selection) -> tuple[Plan, ...]:
    """Return what to draw of each map.

    Raises UsageError for a position, group or channel that a map has not.
    """
    pixels = selection.pixels(attention.pixels.shape[-1])
    plans = []
    for shown in attention.maps:
        positions = tuple(shown.output_at(pixel) for pixel in pixels)
        plans.append(Plan(shown, pixels, positions, selection.groups_of(shown, positions)))
    return tuple(plans)


def draw(attention: Attention, plan: Plan) -> Figure:
    """Draw a row per position: the image, what surrounds the position, the weights of each group.

    The places that a position attends to are coloured, each place as large as the pixels it
    stands for. All positions of a group share its colour scale, which begins at zero or, where
    weights have signs, is centred there.
    """
    from matplotlib.figure import Figure

    side = attention.pixels.shape[-1]
    zoomed = any(_view(plan.shown, position, side)[2] < side for position in plan.positions)
    rows, columns = len(plan.positions), 1 + zoomed + len(plan.groups)
    title = _title(attention, plan.shown)
    width = max(columns * _PANEL_INCHES + 0.4, _LETTER_INCHES * max(map(len, title.split("\n"))))
    figure = Figure(figsize=(width, rows * _PANEL_INCHES + 1.1), layout="constrained")
    panels = figure.subplots(rows + 1, columns, squeeze=False,
                             height_ratios=[1.0] * rows + [_BAR_HEIGHT])
    figure.suptitle(title, fontsize="medium")
    for row in range(rows):
        _draw_image(panels[row][0], attention, plan, row)
        if zoomed:
            _background(panels[row][1], attention)
            _outline_and_zoom(panels[row][1], plan.shown, plan.positions[row], side)
    for panel in panels[-1][:1 + zoomed]:
        panel.set_axis_off()
    for column, group in enumerate(plan.groups, start=1 + zoomed):
        _draw_group(panels[:-1, column], panels[-1, column], attention, plan, group)
    for panel in panels[:-1].flat:
        panel.set_xticks([])
        panel.set_yticks([])
    return figure


def _title(attention: Attention, shown: AttentionMap) -> str:
    layer, footprint, (height, width) = shown.layer, shown.window.footprint, shown.size
    top = int(attention.probabilities.argmax())
    return (f"{attention.model} on {attention.image} (class {top}, "
            f"{attention.probabilities[top]:.0%})\n"
            f"stage {layer.stage}, block {layer.block}: footprint {footprint}x{footprint} on a "
            f"{height}x{width} map, {shown.scale} pixel{'s' * (shown.scale > 1)} per position")


def _draw_image(panel: Axes, attention: Attention, plan: Plan, row: int) -> None:
    """Draw the whole image with the footprint or, where that is too small to see, its view."""
    from matplotlib.patches import Rectangle

    side = attention.pixels.shape[-1]
    _background(panel, attention)
    y, x = plan.pixels[row]
    panel.set_ylabel(f"pixel {y}, {x}\nposition {', '.join(map(str, plan.positions[row]))}",
                     fontsize="small")
    if row == 0:
        panel.set_title("image", fontsize="small")
    top, left, extent = _view(plan.shown, plan.positions[row], side)
    if extent < side:
        panel.add_patch(Rectangle((left, top), extent, extent, fill=False,
                                  edgecolor="tab:orange", linewidth=1.5, clip_on=False))
    if extent > side / 4:
        _outline(panel, plan.shown, plan.positions[row])


def _draw_group(panels: npt.NDArray[np.object_], bar: Axes, attention: Attention, plan: Plan,
                group: int) -> None:
    """Draw the weights of a group at every position, and its colour scale into ``bar``."""
    shown, side = plan.shown, attention.pixels.shape[-1]
    placed = [shown.placed(position)[group].numpy() for position in plan.positions]
    largest = max(float(np.nanmax(abs(each))) for each in placed) or 1.0
    height, width = (length * shown.scale for length in shown.size)
    for panel, position, values in zip(panels, plan.positions, placed, strict=True):
        _background(panel, attention, faint=True)
        drawn = panel.imshow(values, extent=(0, width, height, 0), interpolation="nearest",
                             cmap="RdBu_r" if shown.signed else "viridis", alpha=_OPACITY,
                             vmin=-largest if shown.signed else 0.0, vmax=largest)
        _outline_and_zoom(panel, shown, position, side)
    panels[0].set_title(f"group {group} of {shown.groups}", fontsize="small")
    bar.figure.colorbar(drawn, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize="x-small")
    bar.set_xlabel("weight", fontsize="x-small")
    bar.locator_params(axis="x", nbins=5)


def _background(panel: Axes, attention: Attention, *, faint: bool = False) -> None:
    """Draw the image, in full colour or as a light grey ground for weights."""
    pixels = attention.pixels.permute(1, 2, 0)
    side = pixels.shape[0]
    if faint:
        pixels = (1 + pixels.mean(dim=2, keepdim=True).expand(-1, -1, 3)) / 2
    panel.imshow(pixels.numpy(), extent=(0, side, side, 0), interpolation="nearest")


def _outline_and_zoom(panel: Axes, shown: AttentionMap, position: Place, side: int) -> None:
    _outline(panel, shown, position)
    top, left, extent = _view(shown, position, side)
    panel.set_xlim(left, left + extent)
    panel.set_ylim(top + extent, top)


def _outline(panel: Axes, shown: AttentionMap, position: Place) -> None:
    """Outline the footprint, dashed, where it is inside the image, and the position itself."""
    from matplotlib.patches import Rectangle

    for reach, dashes in ((shown.window.padding, "--"), (0, "-")):
        top, left, bottom, right = _box(shown, position, reach)
        for colour, thickness, style in (("black", 2.4, "-"), ("white", 1.2, dashes)):
            panel.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False,
                                      edgecolor=colour, linewidth=thickness, linestyle=style,
                                      clip_on=False))


def _box(shown: AttentionMap, position: Place, reach: int) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the positions within ``reach``, in pixels."""
    (y, x), (height, width), scale = shown.centre_of(position), shown.size, shown.scale
    return (max(0, y - reach) * scale, max(0, x - reach) * scale,
            min(height, y + reach + 1) * scale, min(width, x + reach + 1) * scale)


def _view(shown: AttentionMap, position: Place, side: int) -> tuple[int, int, int]:
    """Return top, left and side of the part of the image around a position, in pixels."""
    footprint = (2 * shown.window.padding + 1) * shown.scale
    extent = min(side, max(round(_VIEW * footprint), _SMALLEST_VIEW))
    middle = (each * shown.scale + shown.scale // 2 for each in shown.centre_of(position))
    top, left = (min(max(0, each - extent // 2), side - extent) for each in middle)
    return top, left, extent


def _csv(attention: Attention, plans: Sequence[Plan]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    names = guarded(attention.model), guarded(attention.image)
    for plan in plans:
        writer.writerows((*names, *row) for row in _rows(plan))
    return text.getvalue()


def _rows(plan: Plan) -> Iterator[tuple[object, ...]]:
    shown, window = plan.shown, plan.shown.window
    for group in plan.groups:
        for pixel, position in zip(plan.pixels, plan.positions, strict=True):
            weights = shown.weight[group, :, position[0], position[1]].tolist()
            places = shown.neighbours_of(position)
            for neighbour, (weight, place) in enumerate(zip(weights, places, strict=True)):
                dy, dx = (window.dilation * (step - window.footprint // 2)
                          for step in divmod(neighbour, window.footprint))
                yield (shown.layer.stage, shown.layer.block, group, *pixel,
                       *shown.centre_of(position), neighbour, dy, dx, *(place or ("", "")), weight)


def _file_name(name: str) -> str:
    """Return a name as part of a file's: nothing in it can lead to another folder."""
    return re.sub(r"[^\w.()=,+-]+", "-", name).strip(".-") or "unnamed"
