"""Where the attention models of a report look, drawn for one image each."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sanrobust.errors import SanrobustError
from sanrobust.harmless import plain_names
from sanrobust.reporting.images import data_uri
from sanrobust.reporting.originals import data_of
from sanrobust.runs import Run

MOST_MODELS = 12
_GROUPS = 3
_DPI = 65


@dataclass(frozen=True)
class Look:
    """A picture of attention weights.

    Attributes:
        model, image: names.
        words: which layer, and what the model says of the image.
        address: the picture.
    """

    model: str
    image: str
    words: str
    address: str


def looks(runs: Sequence[Run]) -> tuple[Look, ...]:
    """Draw the last block of the middle stage of each attention model of the zoo whose weights lie
    on this machine and are those that were measured, on the first image of its set."""
    newest = {str(run.spec["model"]): run for run in runs}
    return tuple(look for run in list(newest.values())[:MOST_MODELS] for look in _look(run))


def _look(run: Run) -> Iterator[Look]:
    name = str(run.spec["model"])
    if not _is_here(name):
        return
    from sanrobust.attention_maps import attention_layers, read_attention
    from sanrobust.zoo.resolve import create_model
    with suppress(SanrobustError):  # without an image or with other weights there is nothing to say
        model = create_model(name)
        stages = list(dict.fromkeys(layer.stage for layer in attention_layers(model.network)))
        image = _first_image(run)
        if model.weights_digest == run.spec["weights"] and stages and image:
            seen = read_attention(model, image, stages=(stages[len(stages) // 2],))
            yield _drawn(seen)


def _is_here(name: str) -> bool:
    """Return whether a model's weights lie on this machine."""
    from sanrobust.zoo import catalog
    from sanrobust.zoo.entry import Packaged, Stored
    try:
        return isinstance(catalog.find(name).weights, (Packaged, Stored))
    except SanrobustError:
        return False


def _first_image(run: Run) -> str | None:
    """Return the first image's name or path; None where it is no file and no embedded digit."""
    from sanrobust.data.datasets import open_dataset
    from sanrobust.data.imageset import FileImages
    data = data_of(run)
    if data is None:
        return None
    images = open_dataset(data.data, root=data.root, labels=data.labels,
                          class_map=data.class_map, name=None)
    first = images.refs[0].id
    if data.data == "digits":
        return first
    path = images.folder / first if isinstance(images, FileImages) else None
    return str(path) if path is not None and path.is_file() else None


def _drawn(seen: object) -> Look:
    from sanrobust.attention_maps import Attention
    from sanrobust.attention_pictures import Selection, draw, plan
    assert isinstance(seen, Attention)
    chosen = plan(seen, Selection(count=_GROUPS))[0]
    content = io.BytesIO()
    plain_names(draw(seen, chosen)).savefig(content, format="png", dpi=_DPI,
                                            metadata={"Software": None})
    layer, top = chosen.shown.layer, int(seen.probabilities.argmax())
    words = (f"stage {layer.stage}, block {layer.block}; {len(chosen.groups)} of "
             f"{chosen.shown.groups} weight groups at {len(chosen.pixels)} pixels; class {top} "
             f"with {float(seen.probabilities[top]):.0%}")
    return Look(seen.model, seen.image, words, data_uri("image/png", content.getvalue()))
