"""The attention weights of a network for one image, and where on the image they fall.

Letters: M weight groups (the heads of SASA), K2 neighbours of a position (footprint squared, row by
row), H and W positions of a feature map, H' and W' those of the layer's output (fewer than H and W
where the layer has a stride), O value channels, S side of the image in pixels, K classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from sanrobust.data.decode import ImageError, decode
from sanrobust.data.digits import open_digits
from sanrobust.data.transforms import to_pixels
from sanrobust.errors import DataError, ModelError, UsageError
from sanrobust.kernels import plain
from sanrobust.kernels.plain import Window
from sanrobust.zoo.catalog import DEFAULT_TAG
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.resolve import create_model

DIGITS_TAG = "digits"
_DIGIT_ID = re.compile(r"digits/\d{4}")
_BLOCK = re.compile(r"(?:^|\.)layer(\d+)\.(\d+)(?:\.|$)")

Place = tuple[int, int]


@runtime_checkable
class Attends(Protocol):
    """An attention layer: what it sees of each position, and how it weighs it.

    ``attention_weights`` returns the weights (B, M, K2, L) that the layer gives ``features``
    (B, C, H, W); L = H' * W'.
    """

    window: Window

    def attention_weights(self, features: Tensor) -> Tensor:
        """Return the weights (B, M, K2, L)."""
        ...


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer of a network, found at ``name``, by the stage and block it is in."""

    stage: int
    block: int
    name: str
    module: nn.Module


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The weights of one attention layer for one image.

    Attributes:
        layer: the layer.
        weight: (M, K2, H', W'); value channel c is weighed by group c % M.
        window: which neighbours a position sees.
        size: (H, W) of the map attended to.
        scale: pixels of the image per map position, along either side; position (y, x) stands for
            the pixels from (y, x) * scale on.
        channels: O of the values.
    """

    layer: AttentionLayer
    weight: Tensor
    window: Window
    size: Place
    scale: int
    channels: int

    @property
    def groups(self) -> int:
        """M, how many weights each pair of positions has."""
        return self.weight.shape[0]

    @property
    def signed(self) -> bool:
        """Whether some weight is negative, as without a softmax."""
        return bool((self.weight < 0).any())

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The weights as (M, footprint, footprint, H', W')."""
        side = self.window.footprint
        weights: npt.NDArray[np.float32] = self.weight.view(
            self.groups, side, side, *self.weight.shape[2:]).numpy()
        return weights

    @cached_property
    def _neighbours(self) -> Tensor:
        """(K2, H', W') of indices into the flattened map; -1 where a neighbour is padding."""
        height, width = self.size
        # The operators' own padding places the neighbours, so that the two cannot differ.
        index = torch.arange(1, height * width + 1, dtype=torch.float64).view(1, 1, height, width)
        around = plain.neighbours(index, self.window)[0, 0] - 1
        return around.long().view(self.weight.shape[1:])

    def output_at(self, pixel: Place) -> Place:
        """Return the output position (y', x') whose centre is nearest to a pixel (y, x)."""
        step = self.scale * self.window.stride
        y, x = (min(each // step, limit - 1) for each, limit in zip(pixel, self.weight.shape[2:]))
        return y, x

    def centre_of(self, position: Place) -> Place:
        """Return the map position (y, x) around which an output position looks."""
        return position[0] * self.window.stride, position[1] * self.window.stride

    def neighbours_of(self, position: Place) -> tuple[Place | None, ...]:
        """Return the map position on which each of the K2 neighbours falls, after reflection.

        None stands for a neighbour outside the map where padding is zero.
        """
        width = self.size[1]
        indices: list[int] = self._neighbours[:, position[0], position[1]].tolist()
        return tuple(None if index < 0 else divmod(index, width) for index in indices)

    def placed(self, position: Place) -> Tensor:
        """Return the weights (M, H, W) of an output position on the map that it attends to.

        Neighbours reflected onto the same place add up there, as they do in the layer's output;
        neighbours in zero padding are left out. Places outside the footprint are NaN.
        """
        height, width = self.size
        indices = self._neighbours[:, position[0], position[1]]
        inside = indices >= 0
        placed = torch.full((self.groups, height * width), torch.nan, dtype=self.weight.dtype)
        placed[:, indices[inside]] = 0
        placed.index_add_(1, indices[inside], self.weight[:, inside, position[0], position[1]])
        return placed.view(self.groups, height, width)

    def strongest(self, positions: Sequence[Place], count: int) -> tuple[int, ...]:
        """Return the ``count`` groups with the largest weights at ``positions``, largest first.

        Large is the root mean square over neighbours and positions: after a softmax, whose
        weights sum to one, it ranks the groups that attend most selectively first.
        """
        chosen = torch.stack([self.weight[:, :, y, x] for y, x in positions], dim=-1)
        order = chosen.square().mean(dim=(1, 2)).sort(descending=True, stable=True).indices
        strongest: list[int] = order[:count].tolist()
        return tuple(strongest)


@dataclass(frozen=True, eq=False)
class Attention:
    """What a network attends to in one image.

    Attributes:
        model, image: their names.
        pixels: (3, S, S) in [0, 1], as the network gets them.
        probabilities: (K,), the network's answer.
        maps: one map per layer asked for.
    """

    model: str
    image: str
    pixels: Tensor
    probabilities: Tensor
    maps: tuple[AttentionMap, ...]


def read_attention(model: str | Classifier, image: str | Path | None = None, *,
                   stages: Sequence[int] = (), blocks: Sequence[int] = (),
                   checkpoint: Path | None = None, use_ema: bool = False,
                   overrides: Mapping[str, Any] | None = None,
                   say: Callable[[str], None] = lambda _: None) -> Attention:
    """Return the attention weights of a model for one image.

    Args:
        model: a classifier, or a name as in `create_model`; an architecture alone has the weights
            trained on digits for an embedded digit, those of ImageNet for other images.
        image: a file, or the id of an embedded digit, ``digits/0000`` to ``digits/1796``; None
            for the first of the test set.
        stages: which stages, all by default. The stages of a SAN are numbered from 0, those of a
            SASA-ResNet from 1, as their layers are.
        blocks: which blocks of each stage, by default the last one.
        checkpoint, use_ema, overrides: as in `create_model`.
        say: told in a sentence what a user must know of a download.

    Raises DataError for an image that cannot be read, ModelError for a model without attention,
    UsageError for a stage or block that it does not have, and the errors of `create_model`.
    """
    name, opened = open_image(image)
    if isinstance(model, str):
        tag = DIGITS_TAG if _DIGIT_ID.fullmatch(name) else DEFAULT_TAG
        model = create_model(model, checkpoint=checkpoint, use_ema=use_ema, tag=tag,
                             overrides=overrides, say=say)
    layers = choose_layers(model.name, attention_layers(model.network), stages, blocks)
    try:
        pixels = to_pixels(opened, model.preprocessing)
    except ImageError as error:
        raise _unreadable(name, str(error)) from error
    logits, maps = _observe(model, pixels, layers)
    return Attention(model.name, name, pixels, logits.softmax(0), maps)


def open_image(image: str | Path | None) -> tuple[str, Image.Image]:
    """Return an image's name and the image: a file, or an embedded digit by its id.

    Raises DataError when there is no such image or it cannot be read.
    """
    text = open_digits("test").refs[0].id if image is None else str(image)
    path = Path(text)
    if not os.path.exists(path) and _DIGIT_ID.fullmatch(text):
        for images in (open_digits("test"), open_digits("train")):
            for index, ref in enumerate(images.refs):
                if ref.id == text:
                    return text, images.load(index)
        raise DataError("an embedded digit must exist", seen=f"there is no {text}",
                        hint="choose one from digits/0000 to digits/1796")
    try:
        return path.name, decode(path)
    except ImageError as error:
        raise _unreadable(text, str(error)) from error


def attention_layers(network: nn.Module) -> tuple[AttentionLayer, ...]:
    """Return the attention layers of a network, in the order in which they were added.

    The stage and block of a layer are the numbers in ``layerSTAGE.BLOCK`` of its name. In a
    network without such names all layers are blocks of stage 0.
    """
    found = [(name, module) for name, module in network.named_modules()
             if _attends(module)]
    matched = [(_BLOCK.search(name), name, module) for name, module in found]
    layers = tuple(AttentionLayer(int(match[1]), int(match[2]), name, module)
                   for match, name, module in matched if match)
    return layers or tuple(AttentionLayer(0, block, name, module)
                           for block, (name, module) in enumerate(found))


def _attends(module: nn.Module) -> bool:
    return isinstance(module, Attends)


def choose_layers(model: str, layers: Sequence[AttentionLayer], stages: Sequence[int] = (),
                  blocks: Sequence[int] = ()) -> tuple[AttentionLayer, ...]:
    """Return the layers of the chosen stages and blocks; by default the last of each stage.

    Raises ModelError when there are no layers, UsageError for a choice that does not exist.
    """
    if not layers:
        raise ModelError("a model must have attention layers to show", seen=f"{model} has none",
                         hint="choose a SAN or a SASA-ResNet, see sanrobust zoo list")
    known = {(layer.stage, layer.block): layer for layer in layers}
    present = list(dict.fromkeys(layer.stage for layer in layers))
    chosen = []
    for stage in dict.fromkeys(stages or present):
        here = [layer.block for layer in layers if layer.stage == stage]
        if not here:
            raise UsageError(f"--stage must be one of those of {model} with attention",
                             seen=f"it is {stage}", hint=f"choose from {_listed(present)}")
        for block in dict.fromkeys(blocks or here[-1:]):
            if (stage, block) not in known:
                raise UsageError(f"--block must be an attention block of stage {stage} of {model}",
                                 seen=f"it is {block}",
                                 hint=f"choose from {_listed(here)}, or other stages with --stage")
            chosen.append(known[stage, block])
    return tuple(chosen)


def _observe(model: Classifier, pixels: Tensor, layers: Sequence[AttentionLayer]
             ) -> tuple[Tensor, tuple[AttentionMap, ...]]:
    """Run the model on one image; return its logits (K,) and the map of each layer."""
    maps: dict[str, AttentionMap] = {}

    def watch(layer: AttentionLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def observe(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            maps[layer.name] = _map_of(layer, inputs[0], output, pixels.shape[-1])
        return observe

    device = next(iter(model.buffers())).device
    with torch.no_grad(), _hooked(layers, watch):
        logits = model(pixels.unsqueeze(0).to(device))[0].cpu()
    return logits, tuple(maps[layer.name] for layer in layers)


@contextmanager
def _hooked(layers: Sequence[AttentionLayer],
            watch: Callable[[AttentionLayer], Callable[..., None]]) -> Iterator[None]:
    handles = [layer.module.register_forward_hook(watch(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _map_of(layer: AttentionLayer, features: Tensor, output: Tensor, side: int) -> AttentionMap:
    module = cast(Attends, layer.module)
    height, width = features.shape[-2:]
    weight = module.attention_weights(features)[0].float().cpu().contiguous()
    positions = module.window.positions(height, width)
    return AttentionMap(layer, weight.reshape(*weight.shape[:2], *positions), module.window,
                        (height, width), pixels_per_position(side, height), output.shape[1])


def pixels_per_position(side: int, positions: int) -> int:
    """Return how many pixels of ``side`` one of ``positions`` stands for, a power of two.

    Every reduction halves a side, rounding down (pooling) or up (strided convolution).
    """
    scale = 1
    while side // scale > positions and -(-side // scale) > positions:
        scale *= 2
    return scale


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _unreadable(image: str, reason: str) -> DataError:
    return DataError("the image must be a readable image file", seen=f"{image}: {reason}",
                     hint="name a JPEG or PNG file with --image, or leave it out for a digit")
