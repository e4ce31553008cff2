"""How images are predicted: everything that can change a mask, checked in one place."""

from dataclasses import dataclass

from dim_hf.data.volumes.slices import PLANES

UNCERTAINTIES = ("entropy", "flips", "teacher-student")


@dataclass(frozen=True)
class PredictionOptions:
    """How images are predicted.

    Attributes:
        plane: Plane of the slices that a 2D model sees of a volume, one of `slices.PLANES`; None takes the plane that
            is known from the training, else "auto".
        flips: Average the probabilities over the image and all its mirror images (4 in 2D, 8 in 3D).
        largest_component: Keep of each structure only the largest connected part.
        probabilities: Return the probability of each class, too.
        uncertainty: Map of [0, 1]: "entropy" of the mean probabilities, over its largest value; "flips" or
            "teacher-student", by how much the answers for mirror images (which it turns on), or of the two networks
            of a run, differ: entropy of their mean minus mean of their entropies, over its largest value. None: none.
        window: (D, H, W) of the sliding window of a 3D model, in voxels of its input; an axis that is shorter is taken
            whole. None takes volumes whole, as training and evaluation do: windows need less memory, but the network
            sees other surroundings, so that the masks are not those that were scored.
        overlap: Of neighboring windows, in [0, 1).
        channel: Channel or time point that is taken from volumes that have several.
        batch_size: Images, slices or windows of a forward pass, at most; large ones go through in smaller batches.

    Raises:
        ValueError: If a value is not legal.
    """

    plane: str | None = None
    flips: bool = False
    largest_component: bool = False
    probabilities: bool = False
    uncertainty: str | None = None
    window: tuple[int, int, int] | None = None
    overlap: float = 0.5
    channel: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Check every value."""
        if self.plane is not None and self.plane not in PLANES:
            raise ValueError(f"plane is {self.plane!r}; choose one of {', '.join(PLANES)}")
        if self.uncertainty is not None and self.uncertainty not in UNCERTAINTIES:
            raise ValueError(f"uncertainty is {self.uncertainty!r}; choose one of {', '.join(UNCERTAINTIES)}")
        if self.window is not None and (len(self.window) != 3 or min(self.window) < 1):
            raise ValueError(f"window is {self.window}; give depth, height and width in voxels, like (32, 96, 96)")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}; it is a share of the window, at least 0 and below 1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.channel is not None and self.channel < 0:
            raise ValueError(f"channel is {self.channel}; channels count from 0")

    @property
    def mirrored(self) -> bool:
        """Whether mirror images are predicted as well."""
        return self.flips or self.uncertainty == "flips"
