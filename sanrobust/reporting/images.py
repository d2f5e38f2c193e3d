"""Pixels as pictures of a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EXACT_SIDE = 64
"""Pixels to a side up to which a picture is exact; larger ones are made smaller, and JPEG."""
SHOWN_SIDE = 128
_QUALITY = 85


def picture(pixels: Tensor) -> tuple[str, bytes]:
    """Return pixels (3, S, S) in [0, 1], rounded to 8 bits, as an image file and its type."""
    import torch
    from PIL import Image
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    image = Image.fromarray(levels.contiguous().numpy())
    content = io.BytesIO()
    if image.width <= EXACT_SIDE:
        image.save(content, format="PNG", optimize=True)
        return "image/png", content.getvalue()
    image.resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS).save(
        content, format="JPEG", quality=_QUALITY)
    return "image/jpeg", content.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """Return a file as an address that holds all of it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
