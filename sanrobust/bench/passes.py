"""What an attack asks of a network: how many passes, and how much of its time they take.

Letters: B images, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Effort:
    """One run of an attack that was counted; it is none of the timed samples.

    Attributes:
        seconds: wall time of the run, without what the counting itself took.
        cpu_seconds: time of all threads of the process in it.
        model_seconds: wall time of it inside the network, forward and backward.
        forward: images in passes forward.
        backward: images in passes backward.
        robust: images still classified as their label, in percent. One that has left the ball or
            the pixel range counts as such.
        img_size: side of the images in pixels.
    """

    seconds: float
    cpu_seconds: float
    model_seconds: float
    forward: int
    backward: int
    robust: float
    img_size: int

    @property
    def model_share(self) -> float:
        """Part of the wall time inside the network."""
        return self.model_seconds / self.seconds


class Counted(nn.Module):
    """A network in eval mode that counts its passes and takes their time.

    A pass backward is timed from when its gradient arrives at the logits until it leaves the
    pixels; a pass whose gradient stops before the pixels is not counted.

    Args:
        network: pixels (B, 3, H, W) to logits (B, K).
        device: where it computes; a GPU is waited for at both ends of a pass.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.images = {"forward": 0, "backward": 0}
        # Not plain numbers of the module: those a probe sets back to what they were before it.
        self._times: list[float] = []
        self._spent: list[float] = []
        self._device = device
        self.eval()

    @property
    def seconds(self) -> float:
        """Wall time of the passes that were counted."""
        return sum(self._times)

    @property
    def spent(self) -> float:
        """Wall time of the counting itself, as far as it lies outside the network."""
        return sum(self._spent)

    def forget(self) -> float:
        """Count anew; return the seconds so far."""
        seconds = self.seconds
        self._times.clear()
        self._spent.clear()
        self.images.update(forward=0, backward=0)
        return seconds

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        way, entered = _WayBack(self), time.perf_counter()
        if torch.is_grad_enabled() and pixels.requires_grad:
            pixels = pixels.view_as(pixels)
            pixels.register_hook(way.end)  # type: ignore[no-untyped-call]
        self._spent.append(time.perf_counter() - entered)
        begin = self.now()
        logits: Tensor = self.network(pixels)
        self.add("forward", len(pixels), begin)
        left = time.perf_counter()
        if logits.requires_grad:
            logits.register_hook(way.start)  # type: ignore[no-untyped-call]
        self._spent.append(time.perf_counter() - left)
        return logits

    def add(self, direction: str, images: int, begin: float) -> None:
        """Count a pass that began at ``begin`` and has just ended."""
        self._times.append(self.now() - begin)
        self.images[direction] += images

    def now(self) -> float:
        """Return the time on the wall when everything so far has been computed."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass
class _WayBack:
    """The pass backward that belongs to one forward, which may be made several times."""

    counted: Counted
    begin: float = 0.0

    def start(self, gradient: Tensor) -> None:
        """Note that a gradient has arrived at the logits."""
        del gradient
        self.begin = self.counted.now()

    def end(self, gradient: Tensor) -> None:
        """Count the pass, whose gradient leaves the pixels."""
        self.counted.add("backward", len(gradient), self.begin)


def effort_of(attack: Callable[[nn.Module], Tensor], network: nn.Module, device: torch.device,
              robust: Callable[[Tensor], float]) -> Effort:
    """Run an attack of a network once and return what it took.

    Args:
        attack: from the network to adversarial images (B, 3, H, W).
        network: it is given this one, counted.
        device: where it computes.
        robust: accuracy under attack in percent, of the images.
    """
    counted = Counted(network, device)
    begin, used = counted.now(), time.process_time()
    made = attack(counted)
    seconds, used = counted.now() - begin - counted.spent, time.process_time() - used
    return Effort(seconds, used, counted.seconds, counted.images["forward"],
                  counted.images["backward"], robust(made), made.shape[-1])
