"""From a batch of two streams to what the student sees: views, mixing, and pseudo-labels, drawn once a step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dim_hf.augmentations.geometry import WeakView
from dim_hf.augmentations.intensity import FUNDUS_STRONG, MICROSCOPY_STRONG, MRI_STRONG, StrongView
from dim_hf.augmentations.mixing import AmplitudeMixing, MixingBoxes, cutmix, draw_boxes, partners, unmix
from dim_hf.augmentations.seeds import sample_seeds
from dim_hf.augmentations.structures import StructureWarp, nested_pair
from dim_hf.data.sampler import LABELED, UNLABELED
from dim_hf.trainer.dim_training_args import DimTrainingArguments

_STRONG_VIEWS = {"color": FUNDUS_STRONG, "mri": MRI_STRONG, "microscopy": MICROSCOPY_STRONG}
_COLOR_CHANNELS = 3

# Weak views (N, C, *S) → pseudo-labels (N, *S) and their mask (N, *S).
PseudoLabeler = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What one micro-batch's forward and backward passes need, fixed for both passes of a step.

    Attributes:
        pixel_values: (N + M, C, *S), labeled then unlabeled images as the student sees them, mixed.
        labels: (N, *S), of the labeled images, unmixed.
        pseudo_labels: (M, *S), of the unlabeled images, unmixed; None without them.
        pseudo_label_mask: (M, *S), where the pseudo-labels are kept.
        boxes: of the pairs that were mixed; None where nothing was.
        unlabeled_indices: (M,), of the unlabeled images in their data set.
    """

    pixel_values: Tensor
    labels: Tensor
    pseudo_labels: Tensor | None = None
    pseudo_label_mask: Tensor | None = None
    boxes: MixingBoxes | None = None
    unlabeled_indices: Tensor | None = None

    def separate(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the labeled and of the unlabeled images, each pixel where it came from.

        Args:
            logits: (N + M, K, *S), the output for `pixel_values`.

        Returns:
            (N, K, *S) and (M, K, *S), or None without unlabeled images.
        """
        count = len(self.labels)
        labeled, unlabeled = logits[:count], logits[count:]
        if self.boxes is None:
            return labeled, unlabeled if self.pseudo_labels is not None else None
        return unmix(labeled, unlabeled, self.boxes)

    def part(self, fraction: float) -> "StepInputs":
        """The first images of each stream, at least one; of mixed images whole pairs.

        Args:
            fraction: in (0, 1], rounded up to whole images or pairs.
        """
        count = len(self.labels)
        if self.pseudo_labels is None:
            labeled = slice(0, math.ceil(fraction * count))
            return replace(self, pixel_values=self.pixel_values[labeled], labels=self.labels[labeled])
        bounds = self.boxes.bounds if self.boxes else None

        def first(images: int) -> slice:
            pairs = images if bounds is None else len(bounds)
            return slice(0, math.ceil(fraction * pairs) * (images // pairs))

        labeled, unlabeled = first(count), first(len(self.pseudo_labels))
        return StepInputs(
            torch.cat([self.pixel_values[:count][labeled], self.pixel_values[count:][unlabeled]]),
            self.labels[labeled],
            self.pseudo_labels[unlabeled],
            self.pseudo_label_mask[unlabeled],
            self.boxes and MixingBoxes(bounds[first(len(bounds))], self.boxes.spatial_shape),
            self.unlabeled_indices[unlabeled],
        )

    def measurements(self, unlabeled_logits: Tensor | None) -> dict[str, Tensor]:
        """Shares in [0, 1] for the log: pseudo-labels kept, foreground among the kept, agreement of both networks."""
        if unlabeled_logits is None:
            return {}
        kept = self.pseudo_label_mask
        foreground = ((self.pseudo_labels > 0) & kept).sum() / kept.sum().clamp(min=1)
        agreement = (unlabeled_logits.detach().argmax(dim=1) == self.pseudo_labels).float().mean()
        return {
            "kept_share": kept.float().mean(),
            "foreground_share": foreground,
            "teacher_student_agreement": agreement,
        }


@dataclass(frozen=True)
class ViewMaker:
    """Makes the views of a batch; every draw is a function of seed, stream and the sample's position.

    Attributes:
        weak: geometry, for all images.
        structure_warp: other sizes of the inner of two nested structures, for labeled images; may be off.
        nested: class ids of the outer and of the inner structure; None where `structure_warp` is off.
        strong: intensities, for the unlabeled images and, if asked, the labeled ones; None where views stay weak.
        amplitude: mixing of low-frequency spectra into labeled images; its probability may be 0.
        cutmix_probability: share of the pairs that are mixed by a box, in both directions.
        labeled_strong: whether labeled images get a strong view, too.
        channels_last: memory format of `pixel_values`.
        seed: of the run.
    """

    weak: WeakView
    structure_warp: StructureWarp
    nested: tuple[Sequence[int], Sequence[int]] | None
    strong: StrongView | None
    amplitude: AmplitudeMixing
    cutmix_probability: float
    labeled_strong: bool
    channels_last: bool
    seed: int

    @classmethod
    def from_arguments(
        cls, args: DimTrainingArguments, num_channels: int, structures: Mapping[str, Sequence[int]]
    ) -> "ViewMaker":
        """The views that the training arguments ask for.

        Args:
            args: the training arguments.
            num_channels: C of the images.
            structures: what is scored, name → class ids.

        Raises:
            ValueError: for the color preset on images without colors, or a structure warp without nested structures.
        """
        warp = StructureWarp(probability=args.structure_warp_probability)
        nested = nested_pair(structures) if warp.probability > 0 else None
        if warp.probability > 0 and nested is None:
            raise ValueError(
                f"structure_warp_probability is {warp.probability}, but no structure of {dict(structures)} lies "
                'within another: set it to 0, or name nested structures, as in {"disc": [1, 2], "cup": [2]}'
            )
        preset = args.strong_view
        if preset == "auto":
            preset = "color" if num_channels == _COLOR_CHANNELS else "mri"
        if preset == "color" and num_channels != _COLOR_CHANNELS:
            raise ValueError(
                f'strong_view="color" needs images of 3 channels, the model takes {num_channels}: use "mri"'
            )
        return cls(
            weak=WeakView(),
            structure_warp=warp,
            nested=nested,
            strong=_STRONG_VIEWS[preset],
            amplitude=AmplitudeMixing(probability=args.amplitude_mixing_probability),
            cutmix_probability=args.cutmix_probability,
            labeled_strong=args.labeled_view == "strong",
            channels_last=args.channels_last,
            seed=args.seed,
        )

    def without_intensities(self) -> "ViewMaker":
        """The same views with intensities as they are: structures are still warped and boxes pasted."""
        return replace(self, strong=None, amplitude=replace(self.amplitude, probability=0.0))

    def make(self, batch: dict[str, Tensor], pseudo_labeler: PseudoLabeler) -> StepInputs:
        """Views, mixing and pseudo-labels of one batch of `TwoStreamCollator`."""
        labeled_seeds = sample_seeds(self.seed, LABELED, batch["labeled_positions"].tolist())
        images, labels = self._labeled_view(batch["labeled_pixel_values"], batch["labels"], labeled_seeds)
        if "unlabeled_pixel_values" not in batch:
            return StepInputs(self.arrange(self._student_view(images, labeled_seeds)), labels)
        unlabeled_seeds = sample_seeds(self.seed, UNLABELED, batch["unlabeled_positions"].tolist())
        unlabeled, _ = self._weak_view(batch["unlabeled_pixel_values"], None, unlabeled_seeds)
        pseudo_labels, kept = pseudo_labeler(self.arrange(unlabeled))
        images = self._mix_amplitudes(images, unlabeled, labeled_seeds)
        images = self._student_view(images, labeled_seeds)
        unlabeled = self._strong_view(unlabeled, unlabeled_seeds)
        boxes = None
        if self.cutmix_probability > 0:
            pairs = partners(min(len(images), len(unlabeled)), len(unlabeled)).tolist()
            seeds = [unlabeled_seeds[pair] for pair in pairs]
            boxes = draw_boxes(seeds, images.shape[2:], probability=self.cutmix_probability)
            images, unlabeled = cutmix(images, unlabeled, boxes)
        pixel_values = self.arrange(torch.cat([images, unlabeled]))
        return StepInputs(pixel_values, labels, pseudo_labels, kept, boxes, batch["unlabeled_indices"])

    def arrange(self, pixel_values: Tensor) -> Tensor:
        """The memory format that the network runs in."""
        if not self.channels_last:
            return pixel_values
        layout = torch.channels_last if pixel_values.dim() == 4 else torch.channels_last_3d
        return pixel_values.contiguous(memory_format=layout)

    def _weak_view(self, images: Tensor, masks: Tensor | None, seeds: list[int]) -> tuple[Tensor, Tensor | None]:
        return self.weak.apply(images, masks, self.weak.draw(seeds, images.dim() - 2))

    def _labeled_view(self, images: Tensor, masks: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        images, masks = self._weak_view(images, masks, seeds)
        if self.nested is None:
            return images, masks
        return self.structure_warp.apply(
            images, masks, self.structure_warp.draw(seeds, images.dim() - 2), *self.nested
        )

    def _strong_view(self, images: Tensor, seeds: list[int]) -> Tensor:
        if self.strong is None:
            return images
        return self.strong.apply(images, self.strong.draw(seeds, images.shape[1], images.dim() - 2))

    def _student_view(self, images: Tensor, seeds: list[int]) -> Tensor:
        return self._strong_view(images, seeds) if self.labeled_strong else images

    def _mix_amplitudes(self, images: Tensor, others: Tensor, seeds: list[int]) -> Tensor:
        if self.amplitude.probability == 0:
            return images
        others = others[partners(len(images), len(others)).to(others.device)]
        return self.amplitude.apply(images, others, self.amplitude.draw(seeds))
