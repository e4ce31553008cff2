"""What the teacher says of a batch of weak views."""

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from dim_hf.augmentations.geometry import mirror_axes
from dim_hf.losses import adapt_to_image_shares, class_shares, make_pseudo_labels, resize_logits
from dim_hf.sharpness import frozen_running_statistics
from dim_hf.trainer.dim_training_args import DimTrainingArguments


class TeacherPseudoLabels:
    """The teacher's pseudo-labels, as the training arguments ask for them.

    Args:
        teacher: in eval mode; its output has `logits`.
        args: `confidence_threshold`, `share_adaptation`, `teacher_flips` and `teacher_statistics` count.
        labeled: the labeled data set, for `share_adaptation`.
        num_labels: K.
        autocast: makes the context that the teacher runs in.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        args: DimTrainingArguments,
        labeled: Dataset,
        num_labels: int,
        autocast: Callable[[], contextlib.AbstractContextManager],
    ) -> None:
        self.teacher, self.args, self.labeled, self.num_labels = teacher, args, labeled, num_labels
        self.autocast = autocast

    @torch.no_grad()
    def __call__(self, weak_views: Tensor) -> tuple[Tensor, Tensor]:
        """Label weak views (N, C, *S); gives pseudo-labels (N, *S) and their mask, as `make_pseudo_labels`."""
        with self._normalisation():
            logits = self._flipped(weak_views) if self.args.teacher_flips else self._logits(weak_views)
        strength = self.args.share_adaptation
        if strength > 0:  # of each image by itself: other micro-batches and processes do not matter
            logits = adapt_to_image_shares(logits.softmax(dim=1), self._labeled_shares, strength).log()
        return make_pseudo_labels(logits, self.args.confidence_threshold)

    def _logits(self, views: Tensor) -> Tensor:
        with self.autocast():
            logits = self.teacher(pixel_values=views.to(self.teacher.dtype)).logits
        return resize_logits(logits, views.shape[2:])

    def _flipped(self, views: Tensor) -> Tensor:
        """Logarithms of the mean probabilities over mirror images, which softmax turns into these."""
        flips = mirror_axes(views.dim() - 2)
        answers = torch.stack([self._logits(views.flip(axes)).flip(axes) for axes in flips])
        wide = torch.promote_types(answers.dtype, torch.float32)
        return answers.softmax(dim=2, dtype=wide).mean(dim=0).log()

    @cached_property
    def _labeled_shares(self) -> Tensor:
        """Class shares (K,) of all labeled images as they are, without views; read once."""
        label_maps = (torch.as_tensor(self.labeled[index]["labels"]) for index in range(len(self.labeled)))
        return class_shares(label_maps, self.num_labels)

    @contextlib.contextmanager
    def _normalisation(self) -> Iterator[None]:
        """Running statistics, or the batch's: normalisation layers in train mode, their averages still."""
        if self.args.teacher_statistics == "running":
            yield
            return
        layers = [m for m in self.teacher.modules() if getattr(m, "track_running_stats", False)]
        for layer in layers:
            layer.train()
        try:
            with frozen_running_statistics(self.teacher):
                yield
        finally:
            self.teacher.eval()
