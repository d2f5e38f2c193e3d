"""From what a caller names or holds to a classifier: the door of every command that measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sanrobust.choices import ModelConfig
from sanrobust.errors import UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.progress import Reporter, download_lines
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.external import as_classifier
from sanrobust.zoo.resolve import create_model

if TYPE_CHECKING:
    from sanrobust.choices import Model


def chosen_classifier(model: Model, chosen: ModelConfig, *, tag: str, reporter: Reporter
                      ) -> Classifier:
    """Return a model of a choice, on the CPU.

    Args:
        model: one of ``chosen.models``, or of those that none of them means.
        chosen: its weights and preprocessing.
        tag: the weights that an architecture alone means.
        reporter: is told of downloads and of what was assumed.

    Raises as `sanrobust.zoo.resolve.create_model` and `as_classifier` do, and UsageError for
    weights or a preprocessing that cannot go with a network made in Python.
    """
    name = shown_model(model)
    if isinstance(model, str):
        return create_model(model, checkpoint=chosen.checkpoint, use_ema=chosen.use_ema, tag=tag,
                            overrides=chosen.overrides, say=reporter.say,
                            progress=download_lines(name, reporter.say))
    if chosen.checkpoint is not None:
        raise UsageError("a checkpoint must go with the name of a model",
                         seen=f"{name} is a network made in Python",
                         hint="load the weights into it with load_state_dict")
    if isinstance(model, Classifier) and chosen.overrides:
        raise UsageError("a preprocessing must go with a name or a network",
                         seen=f"{name} is a classifier, which has its own",
                         hint="leave it out, or give the classifier's network")
    wanted = Preprocessing(**chosen.overrides) if chosen.overrides else None
    return as_classifier(model, preprocessing=wanted, say=reporter.say)


def shown_model(model: Model) -> str:
    """Return what messages call a model of a choice."""
    if isinstance(model, str):
        return model
    return model.name if isinstance(model, Classifier) else type(model).__name__
