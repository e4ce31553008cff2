"""How large a file may be before it is refused, so that no file of a stranger fills the memory or the disk."""

import math
import os
from collections.abc import Sequence

MAX_PIXELS = 2**27
"""Pixels of a picture; 11,585 x 11,585."""

MAX_VOXELS = 2**30
"""Voxels of a volume, over all its channels; 1,024 x 1,024 x 1,024."""

MAX_FILES = 1_000_000
"""Files and folders below a root, or entries of an archive."""

MAX_UNPACKED_BYTES = 64 * 2**30
"""Bytes that an archive may take when it is unpacked."""

MAX_DEFLATE_RATIO = 1032
"""No zlib or gzip stream unpacks to more bytes than this for each of its own."""


def check_shape(shape: Sequence[int], limit: int, file: str | os.PathLike) -> None:
    """Refuse a shape of a header before anything is allocated for it.

    Args:
        shape: Extents as the header states them.
        limit: Largest allowed number of pixels or voxels.
        file: Named in the message.

    Raises:
        ValueError: If an extent is below 1, or their product is above the limit.
    """
    extents = [int(extent) for extent in shape]
    size = " x ".join(map(str, extents))
    if not extents or min(extents) < 1:
        raise ValueError(f"{file} has no pixels (its size is {size or 'not given'}); copy or export the file again")
    if math.prod(extents) > limit:
        raise ValueError(f"{file} is too large ({size}, the limit is {limit} pixels); cut it or reduce its resolution")
