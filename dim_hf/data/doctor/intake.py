"""What an image processor takes, for the look at every file before training."""

from dataclasses import dataclass

import numpy as np

from dim_hf.data.doctor.reading import Content
from dim_hf.models.intensity_dim_unet import as_sixteen_bits, default_range


@dataclass(frozen=True)
class Intake:
    """What the image processor of a network takes; by default whatever can be read.

    Attributes:
        eight_bits: Pictures of 8 bits a channel alone: it would cut off what is beyond 255.
        default_range: Images whose values lie in the range of their type alone, as `intensity="range"` scales by it.
    """

    eight_bits: bool = False
    default_range: bool = False

    def refusal(self, image: Content) -> tuple[str, str] | None:
        """Why the processor cannot take an image: a key of `findings.CODES`, and what is wrong with it; else None."""
        mode = image.mode or ""
        if self.eight_bits and mode.startswith(("I", "F")):
            said = f"has more than 8 bits a channel (PIL mode {mode}), and the processor of this model takes 8"
            return "more-bits", said
        array = as_sixteen_bits(image.array) if mode == "I" else image.array  # as the processor reads this mode
        if self.default_range and not _has_default_range(array):
            low, high = float(array.min()), float(array.max())
            return "no-range", (
                f"is of {array.dtype.name} with values in [{low:.6g}, {high:.6g}], and the image processor takes "
                "[0, 255] of uint8, [0, 65535] of uint16 and [0, 1] of floats"
            )
        return None


def _has_default_range(array: np.ndarray) -> bool:
    try:
        default_range(array, 0)
    except ValueError:
        return False
    return True


ANY_IMAGE = Intake()
