"""Decoding image files."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rtbench.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def decode_image(source: Path | IO[bytes], size: int, shorter: int | None = None, channels: Literal[1, 3] = 3, name: str = "") -> Tensor:
    """uint8 (channels, size, size): the shorter side scaled to `shorter` pixels (None: `size`), then the centre cut out.

    Scaling is antialiased bilinear; an image that already has the size keeps its pixels. UserError naming the file if it cannot be
    decoded, `name` standing for a source that is not a path.
    """
    try:
        with Image.open(source) as opened:
            if opened.mode[0] in "IF":
                raise ValueError("more than 8 bits per channel")  # which conversion would clip to white
            image = opened.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name or source} cannot be decoded as an image ({error})") from error
    width, height = image.size
    scale = (shorter or size) / min(width, height)
    if scale != 1:
        image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image).reshape(size, size, channels)).permute(2, 0, 1).contiguous()
