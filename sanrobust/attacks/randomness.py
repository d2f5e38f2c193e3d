"""Random numbers that belong to (seed, purpose, image id) and to nothing else.

Neither the batch an image arrives in nor the device it lies on enters, so no split of a run can
change its numbers. Code of others that draws from global generators is run inside `seeded`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

WORD = 64
"""Bits of a word of a stream."""
_BLOCK = 256


def hashed(seed: int, purpose: str, image_id: str, index: int = 0) -> int:
    """Return a number uniform in [0, 2**256), a pure function of its arguments."""
    text = "\0".join(("sanrobust", purpose, str(seed), str(index), image_id))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")


def symmetric_noise(shape: tuple[int, ...], seed: int, image_id: str, index: int,
                    purpose: str = "start") -> NDArray[np.float32]:
    """Return float32 noise uniform in [-1, 1) of the given shape for one image and restart.

    The raw words of a Philox generator are used, which numpy promises never to change.
    """
    import numpy as np

    count = int(np.prod(shape))
    key = hashed(seed, purpose, image_id, index) >> 128
    words = np.random.Philox(key=key).random_raw((count + 1) // 2)
    halves = words.astype("<u8", copy=False).view("<u4")[:count]
    # 24 bits are what a float32 in [0, 1) holds exactly.
    unit = (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0 ** -24)
    return (unit * np.float32(2) - np.float32(1)).reshape(shape)


def starts(images: torch.Tensor, ids: Sequence[str], seed: int, index: int,
           purpose: str = "start") -> torch.Tensor:
    """Return noise uniform in [-1, 1) like ``images`` (B, 3, H, W), made on the CPU one by one."""
    import torch

    shape = tuple(images.shape[1:])
    drawn = [torch.from_numpy(symmetric_noise(shape, seed, image_id, index, purpose))
             for image_id in ids]
    return torch.stack(drawn).to(images.device)


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


class Draws:
    """A stream of random numbers for each image, drawn together and belonging to each alone.

    Args:
        ids: B image ids.
        seed: with the purpose and an id it decides the stream.
        purpose: what is drawn for.
        device: where the numbers are needed.
    """

    def __init__(self, ids: Sequence[str], seed: int, purpose: str, device: torch.device) -> None:
        import numpy as np
        self.device = device
        self._streams = [np.random.Philox(key=hashed(seed, purpose, each) >> 128) for each in ids]
        self._ready = np.empty((len(ids), 0), np.uint64)
        # Up to where each image has used what is ready.
        self._used = np.zeros(len(ids), np.int64)

    def part(self, index: torch.Tensor) -> Draws:
        """Return the streams of some images, which go on from where they are."""
        rest = copy(self)
        places = index.tolist()
        rest._streams = [self._streams[place] for place in places] if self._streams else []
        rest._ready, rest._used = self._ready[places], self._used[places]
        return rest

    def ahead(self, rows: torch.Tensor, turns: torch.Tensor, words: int) -> Draws:
        """Return what images would draw if they had drawn several times before; uses up nothing.

        Args:
            rows: (L,) int64, of which image each of the L draws is.
            turns: (L,) int64, how many draws come before it.
            words: how many words of 64 bits a draw takes.
        """
        import numpy as np
        places, before = rows.cpu().numpy(), turns.cpu().numpy() * words
        self._fill(int(before.max(initial=0)) + words)
        columns = (self._used[places] + before)[:, None] + np.arange(words)
        drawn = copy(self)
        drawn._streams, drawn._ready = [], self._ready[places[:, None], columns]
        drawn._used = np.zeros(len(places), np.int64)
        return drawn

    def skip(self, words: torch.Tensor) -> None:
        """Use up as many words of each image, (B,) int64, as it has drawn ahead."""
        self._used = self._used + words.cpu().numpy()

    def places(self, end: int | torch.Tensor) -> torch.Tensor:
        """Return a whole number from 0 up to and without ``end`` for each image, (B,) int64.

        It is 0 where ``end``, a number or one for each image, is.
        """
        import numpy as np
        import torch
        high = (self._words(1)[:, 0] >> np.uint64(32)).astype(np.int64)
        ends = end.cpu().numpy() if isinstance(end, torch.Tensor) else end
        return torch.from_numpy((high * ends) >> 32).to(self.device)

    def signs(self, count: int) -> torch.Tensor:
        """Return random signs, (B, count) float32, each 1 or -1."""
        import numpy as np
        import torch
        words = self._words(-(-count // WORD)).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=count)
        return torch.from_numpy(bits.astype(np.float32) * 2 - 1).to(self.device)

    def _words(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words of each stream, (B, count)."""
        import numpy as np
        self._fill(count)
        columns = self._used[:, None] + np.arange(count)
        self._used = self._used + count
        words: NDArray[np.uint64] = self._ready[np.arange(len(columns))[:, None], columns]
        return words

    def _fill(self, count: int) -> None:
        """Have ``count`` words of each stream ready that are not used up."""
        import numpy as np
        if not len(self._used) or self._used.max() + count <= self._ready.shape[1]:
            return
        kept = [row[used:] for row, used in zip(self._ready, self._used)]
        width = max(map(len, kept)) + max(_BLOCK, count)
        self._ready = np.array([np.concatenate([row, stream.random_raw(width - len(row))])
                                for row, stream in zip(kept, self._streams)], np.uint64)
        self._used = np.zeros(len(kept), np.int64)
