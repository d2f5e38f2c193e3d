"""A network with its normalisation: pixels in [0, 1] in, logits out, nothing to train.

Letters: B images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sanrobust.errors import (ModelError, NonFiniteError, SanrobustError, TrainModeError,
                              UsageError, first_line)
from sanrobust.preprocessing import Preprocessing
from sanrobust.trouble import out_of_memory
from sanrobust.zoo.code import code_digest
from sanrobust.zoo.digest import state_digest

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
# Sides that networks are made for, tried when one refuses the side it was given.
_SIDES = (224, 32, 64, 28, 96, 128, 256, 112, 160, 192, 240, 288, 299, 320, 336, 384, 448, 512)


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation of each channel.

    Both are in units of the [0, 1] pixel range; they are no part of the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return normalised images (B, 3, H, W) for ``pixels`` (B, 3, H, W) in [0, 1]."""
        return (pixels - self.mean) / self.std


class Classifier(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] to logits (B, K); always in eval mode, all weights frozen.

    Args:
        network: maps normalised images to logits; it is put in eval mode and frozen.
        name: the name under which the user asked for it.
        preprocessing: how images become its pixels; holds the normalisation.
        num_classes: K; found with one black image when None.
        weights_digest: hash of the weights; computed when None.
        source: where the weights came from, in words.
        classes: name of each class, by index; None when unknown.
        code: digest of the code behind the network (`sanrobust.zoo.code`); None where an
            installed library's name says which it is, computed when empty.
        assumed: what nobody said of its preprocessing and was assumed, or what was chosen
            otherwise than in its training, one sentence.

    Raises UsageError for names that are not K different ones, and ModelError when the probe gives
    anything but finite logits (B, K) or a forward pass anything but logits (B, K), with gradients
    where they are wanted.
    """

    def __init__(self, network: nn.Module, *, name: str, preprocessing: Preprocessing,
                 num_classes: int | None = None, weights_digest: str | None = None,
                 source: str = "", classes: Sequence[str] | None = None, code: str | None = "",
                 assumed: str = "") -> None:
        super().__init__()
        self.normalize = Normalize(preprocessing.mean, preprocessing.std)
        self.network = network
        self.name = name
        self.preprocessing = preprocessing
        self.source = source
        self.assumed = assumed
        # Before the first pass, which may leave traces in the network's attributes.
        self.code = code_digest(network) if code == "" else code
        self.weights_digest = (self._digest() if weights_digest is None else weights_digest)
        # Their logits claim to have gradients, which then stop on the way to the pixels.
        self._quantised = any(type(module).__module__.startswith(_QUANTISED)
                              for module in network.modules())
        self.eval()
        self.require_eval()
        self.requires_grad_(False)
        self.num_classes = self._probe() if num_classes is None else num_classes
        self.classes = None if classes is None else tuple(classes)
        if self.classes is not None and not (
                len(self.classes) == len(set(self.classes)) == self.num_classes):
            raise UsageError(f"the classes of {name} must be {self.num_classes} different names",
                             seen=f"there are {len(set(self.classes))}",
                             hint="give one name for each logit, or leave classes out")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, K) for ``pixels`` (B, 3, H, W) in [0, 1].

        Whether they are finite is for those to ask who use them: it has to wait for the device.
        """
        logits = self._passed(pixels)
        self._require_logits(logits, len(pixels))
        if torch.is_grad_enabled() and pixels.requires_grad and (
                self._quantised or not logits.requires_grad):
            raise ModelError(f"the logits of {self.name} must have gradients for an attack",
                             seen="none reach the pixels (quantised layers, no_grad or detach)",
                             hint="measure it with sanrobust rotate, or attack a network that "
                                  "torch can differentiate")
        return logits

    def checked(self, pixels: Tensor) -> Tensor:
        """Return the logits of ``pixels`` as `forward` does; raises NonFiniteError for no numbers.
        """
        logits: Tensor = self(pixels)
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteError(f"the logits of {self.name} must be finite",
                                 seen="some are NaN or infinite",
                                 hint="check the weights, the preprocessing and the images")
        return logits

    def computed_by(self, network: nn.Module) -> Classifier:
        """Return this classifier with another module that computes the same network.

        They share the normalisation, which lies on this one's device.
        """
        other = Classifier(network, name=self.name, preprocessing=self.preprocessing,
                           num_classes=self.num_classes, weights_digest=self.weights_digest,
                           source=self.source, classes=self.classes, code=self.code,
                           assumed=self.assumed)
        other.normalize = self.normalize
        return other

    def train(self, mode: bool = True) -> Classifier:
        """Stay in eval mode whatever is asked: batch statistics must never move here."""
        super().train(False)
        return self

    def require_eval(self) -> None:
        """Raise TrainModeError where a part of the network stays in train mode.

        There numbers depend on the other images of a batch or on chance.
        """
        for name, module in self.network.named_modules():
            if module.training:
                raise TrainModeError(f"every part of {self.name} must be in eval mode",
                                     seen=f"{name or 'it'} ({type(module).__name__}) stays in "
                                          "train mode", hint="mend its train and eval methods")

    def _digest(self) -> str:
        try:
            return state_digest(self.network.state_dict())
        # A module gives out its extra state, and tensors of other kinds their values, or not.
        except Exception as error:
            raise ModelError(f"the weights of {self.name} must be readable",
                             seen=f"reading them stopped with: {first_line(error)}",
                             hint="use a network whose state_dict() holds plain tensors"
                             ) from error

    def _passed(self, pixels: Tensor) -> Tensor:
        """Return what the network makes of the pixels, its exceptions as a sentence."""
        try:
            logits: Tensor = self.network(self.normalize(pixels))
        except (SanrobustError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit too
            # An exception of our own networks or a library's is a defect, with its traceback.
            if self.code is None or out_of_memory(error):
                raise
            raise ModelError(f"{self.name} must take {len(pixels)} float32 images of "
                             f"{pixels.shape[-2]} x {pixels.shape[-1]} pixels",
                             seen=f"it stopped with: {first_line(error)}",
                             hint="mend its forward, which gets images (B, 3, H, W)") from error
        return logits

    def _probe(self) -> int:
        side = self.preprocessing.img_size
        self.num_classes = 0
        try:
            return self._classes(side)
        # A network refuses an input it cannot take in its own words; pass them on.
        except Exception as error:
            cause = error.__cause__ or error
            if out_of_memory(error) or isinstance(error, ModelError) and cause is error:
                raise
            other = self._fitting_side()
            hint = (f"it takes {other} pixels: give --img-size {other}" if other else
                    "check that its forward takes float32 images (B, 3, H, W) on the CPU")
            raise ModelError(f"{self.name} must take images of {side} x {side} pixels",
                             seen=f"it stopped with: {first_line(cause)}", hint=hint) from error

    def _classes(self, side: int) -> int:
        pixels = torch.zeros(1, 3, side, side, device=self.normalize.mean.device)
        with torch.no_grad():
            logits = self.checked(pixels)
        return int(logits.shape[1])

    def _fitting_side(self) -> int | None:
        """Return a side in pixels that the network does take."""
        for side in _SIDES:
            try:
                self._classes(side)
            except Exception:
                continue
            return side
        return None

    def _require_logits(self, logits: object, batch: int) -> None:
        hint = "use a model that returns one tensor of logits per batch"
        rule = f"{self.name} must return logits of shape (images, classes)"
        if not isinstance(logits, Tensor):
            raise ModelError(rule, seen=f"it returned a {type(logits).__name__}", hint=hint)
        expected = (batch, self.num_classes or logits.shape[-1]) if logits.ndim else ()
        if logits.ndim != 2 or tuple(logits.shape) != expected or not logits.shape[1]:
            raise ModelError(rule, seen=f"{batch} images gave {tuple(logits.shape)}", hint=hint)
        if not logits.is_floating_point():
            raise ModelError(rule, seen=f"they are of type {logits.dtype}", hint=hint)
