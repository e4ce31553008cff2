"""What a run will take, as a record and as a text."""

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True)
class PreflightReport:
    """What a run will take, from a few of its own steps.

    Attributes:
        parameters: weights of the student.
        device: what it ran on, with the precision.
        processes: how many made the step together.
        steps: optimizer steps of the whole run.
        peak_memory: bytes that the fullest process took, on a GPU of the GPU's memory.
        memory: bytes that there are for one process; None where unknown.
        seconds_per_step: mean over plain and sharpness-aware steps as the run takes them; None if it did not fit.
        seconds_waiting: for images, a step; images that stay in memory once decoded are waited for once.
        seconds_per_validation: of teacher and student on all validation images; None without any.
        validations: how many the run will do.
        images_per_step: labeled and unlabeled images of one optimizer step, all processes together.
        checkpoint: bytes of one checkpoint.
        checkpoints: how many lie on the disk at once, the one that is being written among them.
        free_disk: bytes free where the run will write.
        failure: what failed for lack of memory; None when all was well.
        advice: what to change, in the order to try.
    """

    parameters: int
    device: str
    processes: int
    steps: int
    peak_memory: int
    memory: int | None
    seconds_per_step: float | None
    seconds_waiting: float | None
    seconds_per_validation: float | None
    validations: int
    images_per_step: int
    checkpoint: int
    checkpoints: int
    free_disk: int
    failure: str | None
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the run will end, as far as memory and disk go."""
        return self.failure is None and self.checkpoint * self.checkpoints <= self.free_disk

    @property
    def hours(self) -> float | None:
        """Hours until the last step, validations included, the scoring of test images not."""
        if self.seconds_per_step is None:
            return None
        seconds = self.steps * (self.seconds_per_step + self.seconds_waiting)
        return (seconds + self.validations * (self.seconds_per_validation or 0.0)) / 3600

    @property
    def images_per_second(self) -> float | None:
        """Labeled and unlabeled images, all processes together."""
        return self.images_per_step / self.seconds_per_step if self.seconds_per_step else None

    def __str__(self) -> str:
        of = f" of {self.memory / _GIB:.1f} GiB" if self.memory else ""
        lines = [
            f"device       {self.device}, {self.processes} process{'es' if self.processes > 1 else ''}",
            f"parameters   {self.parameters / 1e6:.2f} million",
            f"peak memory  {self.peak_memory / _GIB:.2f} GiB{of} (the fullest process)",
        ]
        if self.seconds_per_step is not None:
            lines += [
                f"a step       {self.seconds_per_step:.3f} s, and {self.seconds_waiting:.3f} s of waiting for images",
                f"images       {self.images_per_second:.1f} a second, {self.images_per_step} a step",
                f"to finish    {_duration(self.hours)}: {self.steps} steps, {self.validations} validations"
                + (f" of {self.seconds_per_validation:.1f} s" if self.seconds_per_validation is not None else ""),
            ]
        disk = self.checkpoint * self.checkpoints
        lines.append(
            f"disk         {disk / 1e6:.0f} MB for {self.checkpoints} checkpoints of {self.checkpoint / 1e6:.0f} MB; "
            f"{self.free_disk / 1e6:.0f} MB are free"
        )
        if self.failure:
            lines.append(f"IT DOES NOT FIT: {self.failure}")
        if self.advice:
            lines += ["what to change, in this order:", *(f"  - {each}" for each in self.advice)]
        return "\n".join(lines)


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
