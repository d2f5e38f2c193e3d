"""The optimizer, the schedule and the averaged weights of a recipe: timm's and torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from sanrobust.errors import UsageError, first_line, shown_value
from sanrobust.registry import closest
from sanrobust.training.recipes import Recipe

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

_FIRST_PART = 0.01  # of the rate, at which a warm-up begins


def make_optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    """Return timm's optimizer of that name over all parameters, which all decay alike.

    Raises UsageError for a name that timm has not, and for one that cannot take the recipe.
    """
    from timm.optim._optim_factory import create_optimizer_v2, list_optimizers

    known = [str(name) for name in list_optimizers()]
    if recipe.optimizer not in known:
        near = closest(recipe.optimizer, known)
        raise UsageError("--optimizer must be one of timm's",
                         seen=f"there is no {shown_value(recipe.optimizer)}",
                         hint=f"did you mean {near}?" if near
                         else "type for example --optimizer momentum")
    try:
        made: Optimizer = create_optimizer_v2(
            network, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay,
            momentum=recipe.momentum, filter_bias_and_bn=False)
    except Exception as error:  # it may want a package that is not there, or other settings
        raise UsageError("the optimizer must take the recipe",
                         seen=f"{recipe.optimizer} stopped with: {first_line(error)}",
                         hint="type for example --optimizer momentum") from error
    return made


def make_average(network: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """Return timm's moving average of the network's weights, on its device; None for none."""
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(network, decay=recipe.ema) if recipe.ema else None


def make_schedule(optimizer: Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """Return a cosine from the recipe's rate to zero, after a line upwards where it warms up.

    Args:
        optimizer: whose rate it sets.
        recipe: its ``decay`` says whether the schedule is stepped once an epoch or once a step.
        steps: steps of an epoch.
    """
    turns = steps if recipe.decay == "step" else 1
    falling = (recipe.epochs - recipe.warmup) * turns
    cosine = CosineAnnealingLR(optimizer, T_max=falling)
    if not recipe.warmup:
        return cosine
    rising = LinearLR(optimizer, start_factor=_FIRST_PART, total_iters=recipe.warmup * turns)
    return SequentialLR(optimizer, [rising, cosine], [recipe.warmup * turns])


def rate_of(optimizer: Optimizer) -> float:
    """Return the learning rate of the next step."""
    group: dict[str, Any] = optimizer.param_groups[0]
    return float(group["lr"])
