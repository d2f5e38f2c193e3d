"""Our networks among timm's: ``import sanrobust.timm``, then ``timm.create_model("san10_pair")``.

Every network that timm has not gets its name with ``_`` for ``-``; ``_small`` behind it gives the
form for small images. So timm's own scripts train and measure them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import is_model, register_model
from torch import nn

from sanrobust.errors import UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo.build import build
from sanrobust.zoo.catalog import DEFAULT_TAG, SMALL_PREPROCESSING
from sanrobust.zoo.families.catalog import networks
from sanrobust.zoo.forms import imagenet_config, small_config
from sanrobust.zoo.resolve import create_model

# What timm hands to every model, and the values that change nothing.
_INERT: dict[str, tuple[object, ...]] = {
    "in_chans": (None, 3), "drop_rate": (None, 0, 0.0), "drop_path_rate": (None, 0, 0.0),
    "drop_block_rate": (None, 0, 0.0), "global_pool": (None, "avg", ""),
    "bn_momentum": (None,), "bn_eps": (None,), "features_only": (None, False)}
_TOLD = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _maker(arch: str, *, small: bool) -> Callable[..., nn.Module]:
    wanted = SMALL_PREPROCESSING if small else Preprocessing()

    def make(pretrained: bool = False, num_classes: int | None = None, **given: Any) -> nn.Module:
        _require_inert(arch, given)
        classes = num_classes or (10 if small else 1000)
        network = (_published(arch, classes, small=small) if pretrained else
                   build((small_config if small else imagenet_config)(arch, classes)))
        told = _config(wanted, classes, network)
        for name, value in (("num_classes", classes), ("default_cfg", told),
                            ("pretrained_cfg", told)):
            setattr(network, name, value)
        return network

    make.__name__ = make.__qualname__ = arch.replace("-", "_") + ("_small" if small else "")
    make.__doc__ = f"Return {arch}, its form for {'small images' if small else 'ImageNet'}."
    return make


def _published(arch: str, classes: int, *, small: bool) -> nn.Module:
    if small or classes != 1000:
        raise UsageError("published weights must be asked for with 1000 classes and in the form "
                         "for ImageNet", seen=f"{arch} is asked for otherwise",
                         hint="use sanrobust.create_model for other weights")
    network = create_model(f"{arch}.{DEFAULT_TAG}").network
    network.requires_grad_(True)
    return network


def _config(wanted: Preprocessing, classes: int, network: nn.Module) -> dict[str, object]:
    side = wanted.img_size
    first = next(name for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    return {"url": "", "num_classes": classes, "input_size": (3, side, side),
            "crop_pct": wanted.crop_pct, "interpolation": wanted.interpolation,
            "mean": wanted.mean, "std": wanted.std, "first_conv": first, "classifier": "fc"}


def _require_inert(arch: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name in _TOLD or name in _INERT and value in _INERT[name]:
            continue
        raise UsageError(f"{arch} must be made without {name}", seen=f"it is {value!r}",
                         hint="leave it out; options of the network stand in its name, as "
                              "sanrobust train --model takes it")


for _arch in networks():
    for _small in (False, True):
        _made = _maker(_arch, small=_small)
        if not is_model(_made.__name__):
            register_model(_made)
