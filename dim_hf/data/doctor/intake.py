"""What an image processor takes, for the look at every file before training."""

from dataclasses import dataclass

from dim_hf.data.doctor.reading import Content


@dataclass(frozen=True)
class Intake:
    """What the image processor of a network takes; by default whatever can be read.

    Attributes:
        eight_bits: Pictures of 8 bits a channel alone: it would cut off what is beyond 255.
    """

    eight_bits: bool = False

    def refusal(self, image: Content) -> tuple[str, str] | None:
        """Why the processor cannot take an image: a key of `findings.CODES`, and what is wrong with it; else None."""
        mode = image.mode or ""
        if self.eight_bits and mode.startswith(("I", "F")):
            said = f"has more than 8 bits a channel (PIL mode {mode}), and the processor of this model takes 8"
            return "more-bits", said
        return None


ANY_IMAGE = Intake()
