"""Where a training is, so that a stopped one goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanrobust.errors import CheckpointError, first_line
from sanrobust.files import atomic_write, open_regular
from sanrobust.training.history import Epoch


@dataclass
class Sums:
    """Sums over the steps of an epoch, on the device; nobody waits for them while it lasts.

    Attributes:
        values: float64 (4,): losses, and of the images those right, among five, and all.
        lr: rate of the first of these steps.
        passes: how many losses.
    """

    values: Tensor
    lr: float
    passes: int = 0


@dataclass
class State:
    """How far a training is.

    Attributes:
        epoch: epochs that are finished.
        step: steps of the next that are.
        sums: of those steps.
        history: of the finished epochs.
        best: highest held-out top-1 so far, in percent.
        seconds: wall time that training took.
    """

    sums: Sums
    epoch: int = 0
    step: int = 0
    history: list[Epoch] = field(default_factory=list)
    best: float = -1.0
    seconds: float = 0.0


def write_state(path: Path, state: State, parts: Mapping[str, Any], identity: Mapping[str, str]
                ) -> None:
    """Write where a training is; raises OutputError.

    Args:
        path: the file.
        state: how far it is.
        parts: `state_dict` of what it moves, by name.
        identity: what training this is.
    """
    sums = state.sums
    content = {"identity": dict(identity), "parts": dict(parts), "epoch": state.epoch,
               "step": state.step, "sums": sums.values.cpu(), "lr": sums.lr, "passes": sums.passes,
               "history": [asdict(each) for each in state.history], "best": state.best,
               "seconds": state.seconds}
    with atomic_write(path) as stream:
        torch.save(content, stream)


def read_state(path: Path, device: torch.device, identity: Mapping[str, str]
               ) -> tuple[State, dict[str, Any]] | None:
    """Return where the training of that identity is, and its parts; None for another or none.

    Raises CheckpointError for a file that does not read.
    """
    try:
        with open_regular(path) as stream:
            content = torch.load(stream, map_location="cpu", weights_only=True)
        if content["identity"] != dict(identity):
            return None
        sums = Sums(content["sums"].to(device), content["lr"], content["passes"])
        return State(sums, epoch=content["epoch"], step=content["step"],
                     history=[Epoch(**row) for row in content["history"]], best=content["best"],
                     seconds=content["seconds"]), content["parts"]
    except FileNotFoundError:
        return None
    # Damage shows as nearly anything.
    except Exception as error:
        raise CheckpointError("the state of a training must be whole",
                              seen=f"{path} does not read ({first_line(error)})",
                              hint="remove that file, or add --fresh; training begins anew"
                              ) from error
