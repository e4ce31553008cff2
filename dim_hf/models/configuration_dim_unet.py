"""Configuration of the U-Net."""

import math

from transformers import PreTrainedConfig

SPATIAL_DIMS = (2, 3)
NORMS = ("batch", "instance", "group")
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu")
UPSAMPLES = ("transpose", "interpolate")
PLANES = (None, "axial", "coronal", "sagittal", "auto")

_CHOICES: dict[str, tuple[int | str | None, ...]] = {
    "spatial_dims": SPATIAL_DIMS,
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "upsample": UPSAMPLES,
    "plane": PLANES,
}


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class DimUNetConfig(PreTrainedConfig):
    """Configuration of `DimUNetForSemanticSegmentation`.

    The defaults are the U-Net of the mixed-domain segmentation benchmark (MiDSS, arXiv 2404.08951): five levels,
    BatchNorm, transposed convolutions. Field values are checked when the configuration is made, and again when a
    model is made from it.

    Args:
        num_channels: Channels of `pixel_values`. Default 3.
        spatial_dims: 2 for images (N, C, H, W), 3 for volumes (N, C, D, H, W). Default 2.
        hidden_sizes: Channels of each level, finest first, at least two. With L levels the deepest feature map is
            2^(L-1) times smaller than the input. Default [64, 128, 256, 512, 1024].
        norm: "batch"; "instance" (with learned scale and shift); or "group", of gcd(channels, 8) groups.
            Default "batch".
        activation: "relu", "leaky_relu" (slope 0.01), "elu", "gelu" or "silu". Default "relu".
        upsample: "transpose" (transposed convolution, kernel and stride 2) or "interpolate" (1x1 convolution, then
            bi- or trilinear interpolation). Default "transpose".
        dropout: Probability in [0, 1) with which whole channels of the deepest feature map are dropped in training:
            the one place where U-Net (arXiv 1505.04597) has dropout, the end of the contracting path. Default 0.0.
        deep_supervision: Adds a 1x1 head on each coarser decoder level; they count in the loss only. Default False.
        structures: Nested structures to score, each as the exclusive classes it is made of, for example
            {"disc": [1, 2], "cup": [2]}. None: every class but background (0) alone. Default None.
        plane: Plane of the slices that a 2D network was trained on, in which it goes through volumes: "axial",
            "coronal", "sagittal", or "auto", across the coarsest axis of each volume. None: not known, or no slices.
            Default None.
        spacing_mm: Distance of voxels, left-right, back-front and foot-head, to which volumes were resampled for the
            training, and are for a prediction: three numbers above 0. None: each volume had its own. Default None.
        loss_ignore_index: Label of pixels that count in no loss; not one of the classes. Default 255.
        num_labels: Number of exclusive classes, background included, at least 2. Default 2.
        id2label: Name of each class 0..num_labels-1; wins over `num_labels`.

    Raises:
        ValueError: A value is not legal; the message names the field, the value and the legal ones.

    Example:
        >>> config = DimUNetConfig(hidden_sizes=[8, 16], id2label={0: "background", 1: "rim", 2: "cup"})
        >>> config.num_labels, config.label2id["cup"]
        (3, 2)
    """

    model_type = "dim_unet"

    num_channels: int = 3
    spatial_dims: int = 2
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024)
    norm: str = "batch"
    activation: str = "relu"
    upsample: str = "transpose"
    dropout: float = 0.0
    deep_supervision: bool = False
    structures: dict[str, list[int]] | None = None
    plane: str | None = None
    spacing_mm: list[int | float] | tuple[int | float, ...] | None = None
    loss_ignore_index: int = 255

    def __post_init__(self, **kwargs: object) -> None:
        """Complete the label maps, bring containers to their JSON form and check every field.

        Raises:
            ValueError: A value is not legal.
        """
        has_own_names = self.id2label is not None
        if has_own_names and not isinstance(self.id2label, dict):
            raise ValueError(f"id2label must map the classes 0..K-1 to names, got {self.id2label!r}.")
        if not has_own_names and not _is_positive_int(kwargs.get("num_labels", 2)):
            raise ValueError(f"num_labels must be an integer of at least 2, got {kwargs['num_labels']!r}.")
        super().__post_init__(**kwargs)
        if has_own_names and self.label2id is None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        # JSON knows lists only: with lists from the start a configuration equals its reloaded self.
        if isinstance(self.hidden_sizes, list | tuple):
            self.hidden_sizes = list(self.hidden_sizes)
        if isinstance(self.spacing_mm, tuple):
            self.spacing_mm = list(self.spacing_mm)
        if isinstance(self.structures, dict):
            self.structures = {
                name: list(classes) if isinstance(classes, tuple) else classes
                for name, classes in self.structures.items()
            }
        self.check_fields()

    def check_fields(self) -> None:
        """Check every field; also called by the model, since `from_pretrained(path, field=...)` sets fields late.

        Raises:
            ValueError: A value is not legal.
        """
        for field, legal in _CHOICES.items():
            value = getattr(self, field)
            if value not in legal:
                raise ValueError(f"{field} must be one of {', '.join(map(repr, legal))}, got {value!r}.")
        if not _is_positive_int(self.num_channels):
            raise ValueError(f"num_channels must be a positive integer, got {self.num_channels!r}.")
        sizes = self.hidden_sizes
        if not isinstance(sizes, list | tuple) or len(sizes) < 2 or not all(map(_is_positive_int, sizes)):
            raise ValueError(f"hidden_sizes must be a list of at least two positive integers, got {sizes!r}.")
        dropout = self.dropout
        if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}.")
        if not isinstance(self.deep_supervision, bool):
            raise ValueError(f"deep_supervision must be True or False, got {self.deep_supervision!r}.")
        if self.spacing_mm is not None and not _is_spacing(self.spacing_mm):
            raise ValueError(f"spacing_mm must be None or three numbers of mm above 0, got {self.spacing_mm!r}.")
        self._check_classes()

    def _check_classes(self) -> None:
        """Check the class names, the structures over them and the ignored label."""
        count = self.num_labels
        if count < 2:
            raise ValueError(f"num_labels must be at least 2 (background and one structure), got {count}.")
        if sorted(self.id2label) != list(range(count)):
            raise ValueError(f"id2label must name the classes 0..{count - 1}, got the keys {sorted(self.id2label)}.")
        if len(set(self.id2label.values())) != count:
            raise ValueError(f"id2label must give each class a name of its own, got {self.id2label!r}.")
        ignored = self.loss_ignore_index
        if not isinstance(ignored, int) or isinstance(ignored, bool) or 0 <= ignored < count:
            raise ValueError(f"loss_ignore_index must be an integer that is no class 0..{count - 1}, got {ignored!r}.")
        if self.structures is None:
            return
        if not isinstance(self.structures, dict) or not self.structures:
            raise ValueError(f"structures must be None or map names to lists of classes, got {self.structures!r}.")
        for name, classes in self.structures.items():
            if not isinstance(classes, list) or not _are_classes(classes, count):
                raise ValueError(
                    f"structures[{name!r}] must be a list of different classes out of 0..{count - 1}, got {classes!r}."
                )


def _is_spacing(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    numbers = all(isinstance(length, int | float) and not isinstance(length, bool) for length in value)
    return numbers and all(math.isfinite(length) and length > 0 for length in value)


def _are_classes(classes: list, count: int) -> bool:
    legal = all(isinstance(index, int) and 0 <= index < count for index in classes)
    return legal and len(classes) > 0 and len(set(classes)) == len(classes)


__all__ = ["DimUNetConfig"]
