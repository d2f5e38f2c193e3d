"""Random numbers that belong to (seed, purpose, image id) and to nothing else.

Neither the batch an image arrives in nor the device it lies on enters, so no split of a run can
change its numbers. Code of others that draws from global generators is run inside `seeded`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def hashed(seed: int, purpose: str, image_id: str, index: int = 0) -> int:
    """Return a number uniform in [0, 2**256), a pure function of its arguments."""
    text = "\0".join(("sanrobust", purpose, str(seed), str(index), image_id))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")


def symmetric_noise(shape: tuple[int, ...], seed: int, image_id: str,
                    index: int) -> NDArray[np.float32]:
    """Return float32 noise uniform in [-1, 1) of the given shape for one image and restart.

    The raw words of a Philox generator are used, which numpy promises never to change.
    """
    import numpy as np

    count = int(np.prod(shape))
    key = hashed(seed, "start", image_id, index) >> 128
    words = np.random.Philox(key=key).random_raw((count + 1) // 2)
    halves = words.astype("<u8", copy=False).view("<u4")[:count]
    # 24 bits are what a float32 in [0, 1) holds exactly.
    unit = (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0 ** -24)
    return (unit * np.float32(2) - np.float32(1)).reshape(shape)


@contextmanager
def seeded(draw: int, device: torch.device) -> Iterator[None]:
    """Seed every global random generator and give all of them back when the block ends, or fails.

    Args:
        draw: any whole number, 0 or more.
        device: the device whose generator is seeded besides the CPU's.
    """
    import numpy as np
    import torch

    python, arrays = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(draw % 2**63)
            np.random.seed(draw % 2**32)
            random.seed(draw)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
