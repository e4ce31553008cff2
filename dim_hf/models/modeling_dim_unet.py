"""U-Net for semantic segmentation of images and volumes (Ronneberger et al., arXiv 1505.04597)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput

from .configuration_dim_unet import DimUNetConfig
from .loss_dim_unet import cross_entropy_and_dice


@dataclass(frozen=True)
class _SpatialModules:
    """What differs between images and volumes."""

    axes: str
    convolution: type[nn.Module]
    transposed_convolution: type[nn.Module]
    batch_norm: type[nn.Module]
    instance_norm: type[nn.Module]
    dropout: type[nn.Module]
    max_pool: Callable[..., Tensor]
    linear: str


_SPATIAL = {
    2: _SpatialModules(
        "(N, C, H, W)",
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.BatchNorm2d,
        nn.InstanceNorm2d,
        nn.Dropout2d,
        F.max_pool2d,
        "bilinear",
    ),
    3: _SpatialModules(
        "(N, C, D, H, W)",
        nn.Conv3d,
        nn.ConvTranspose3d,
        nn.BatchNorm3d,
        nn.InstanceNorm3d,
        nn.Dropout3d,
        F.max_pool3d,
        "trilinear",
    ),
}

_NORMS: dict[str, Callable[[_SpatialModules, int], nn.Module]] = {
    "batch": lambda modules, channels: modules.batch_norm(channels),
    "instance": lambda modules, channels: modules.instance_norm(channels, affine=True),
    "group": lambda modules, channels: nn.GroupNorm(math.gcd(channels, 8), channels),
}

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)


_Switches = list[tuple[bool, dict[str, Tensor | None]]]


def _switches(norms: list[nn.Module]) -> _Switches:
    """Of each batch norm, whether it moves its running statistics, and these."""
    return [(norm.track_running_stats, dict(norm._buffers)) for norm in norms]


@contextmanager
def _replayed_statistics(norms: list[nn.Module], first: _Switches) -> Iterator[None]:
    """Repeat a training forward pass of batch norms exactly, except that their running statistics stay as they are.

    The statistics move on copies. Switching them off instead would save fewer tensors for the backward pass than the
    first call did, which checkpointing takes for an error; for the same reason the switches of the `first` call come
    back, since a caller may have frozen or freed the statistics between the two.
    """
    before = _switches(norms)
    for norm, (tracked, buffers) in zip(norms, first, strict=True):
        norm.track_running_stats = tracked
        norm._buffers.update({name: None if old is None else old.clone() for name, old in buffers.items()})
    try:
        yield
    finally:
        for norm, (tracked, buffers) in zip(norms, before, strict=True):
            norm.track_running_stats = tracked
            norm._buffers.update(buffers)


class _Recomputable:
    """A block as gradient checkpointing calls it: once forward, and again in the backward pass.

    Running statistics move in the first call only; otherwise checkpointing would move them twice a step.
    """

    def __init__(self, block: "DimUNetBlock") -> None:
        self.block = block
        self.norms = [norm for norm in (block.norm1, block.norm2) if hasattr(norm, "track_running_stats")]
        self.first: _Switches | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        if self.first is None:
            self.first = _switches(self.norms)
            return self.block.compute(hidden)
        with _replayed_statistics(self.norms, self.first):
            return self.block.compute(hidden)


class DimUNetBlock(nn.Module):
    """Twice: 3x3 convolution, normalisation, activation. The unit of gradient checkpointing.

    The convolutions have no bias: the normalisation that follows would remove it.
    """

    gradient_checkpointing = False

    def __init__(self, config: DimUNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        modules = _SPATIAL[config.spatial_dims]
        self.conv1 = modules.convolution(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = _NORMS[config.norm](modules, out_channels)
        self.conv2 = modules.convolution(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = _NORMS[config.norm](modules, out_channels)
        self.activation = _ACTIVATIONS[config.activation]()

    def compute(self, hidden: Tensor) -> Tensor:
        """(N, in_channels, *S) -> (N, out_channels, *S)."""
        hidden = self.activation(self.norm1(self.conv1(hidden)))
        return self.activation(self.norm2(self.conv2(hidden)))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, in_channels, *S) -> (N, out_channels, *S), recomputed in the backward pass if checkpointing is on."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return self.compute(hidden)
        if not hidden.requires_grad:
            # The reentrant form of checkpointing gives a block no gradient unless its input asks for one.
            hidden = hidden.detach().requires_grad_()
        return self._gradient_checkpointing_func(_Recomputable(self), hidden)


class DimUNetUpsample(nn.Module):
    """Doubles the size of the coarse features, joins the encoder's features of that level, and applies a block."""

    def __init__(self, config: DimUNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        modules = _SPATIAL[config.spatial_dims]
        self.interpolation = modules.linear if config.upsample == "interpolate" else None
        self.project = (
            modules.convolution(in_channels, out_channels, 1)
            if self.interpolation
            else modules.transposed_convolution(in_channels, out_channels, 2, stride=2)
        )
        self.block = DimUNetBlock(config, 2 * out_channels, out_channels)

    def forward(self, hidden: Tensor, skip: Tensor) -> Tensor:
        """(N, in_channels, *S/2) and (N, out_channels, *S) -> (N, out_channels, *S)."""
        hidden = self.project(hidden)
        if self.interpolation:
            hidden = F.interpolate(hidden, size=skip.shape[2:], mode=self.interpolation, align_corners=False)
        return self.block(torch.cat([skip, hidden], dim=1))


class DimUNetPreTrainedModel(PreTrainedModel):
    """Weight initialisation and what transformers must know about the network."""

    config_class = DimUNetConfig
    base_model_prefix = "dim_unet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean: a Trainer must not rescale it by the number of items
    _no_split_modules = ("DimUNetBlock", "DimUNetUpsample")
    # Loaded in half precision, a running variance would keep two or three digits.
    _keep_in_fp32_modules_strict = ("norm1", "norm2")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own scheme for convolutions, as the benchmark's network has it: U(±1/√fan_in).

        `transformers.initialization` leaves tensors alone that a checkpoint has filled.
        """
        if isinstance(module, _CONVOLUTIONS):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, _BATCH_NORMS + _OTHER_NORMS):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, _BATCH_NORMS):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


class DimUNetForSemanticSegmentation(DimUNetPreTrainedModel):
    """U-Net with one logit map for each class, at the size of the input.

    Any input size is taken. Each axis is padded at its end to a multiple of 2^(L-1), L the number of levels, and the
    logits are cropped back. The padding repeats the border pixel: it invents no edge, and unlike reflection it also
    works where the padding is longer than the axis (an axis of one pixel, a volume of a few slices). An input that
    would shrink to a single element at the deepest level is padded to two along its last axis, since BatchNorm and
    InstanceNorm have no variance of a single value. Padded pixels enter the batch statistics, and a thin volume costs
    as much as one of 2^(L-1) slices: give thin volumes fewer levels.

    Args:
        config: See `DimUNetConfig`.

    Raises:
        ValueError: `config` holds an illegal value.
    """

    def __init__(self, config: DimUNetConfig) -> None:
        config.check_fields()
        super().__init__(config)
        modules, sizes = _SPATIAL[config.spatial_dims], config.hidden_sizes
        inputs = [config.num_channels, *sizes[:-1]]
        self.encoder = nn.ModuleList(DimUNetBlock(config, *pair) for pair in zip(inputs, sizes, strict=True))
        self.dropout = modules.dropout(config.dropout)
        # From the deepest level up: decoder[i] ends at level L-2-i.
        self.decoder = nn.ModuleList(
            DimUNetUpsample(config, sizes[level + 1], sizes[level]) for level in reversed(range(len(sizes) - 1))
        )
        self.head = modules.convolution(sizes[0], config.num_labels, 1)
        supervised = sizes[-2:0:-1] if config.deep_supervision else []
        self.auxiliary_heads = nn.ModuleList(modules.convolution(size, config.num_labels, 1) for size in supervised)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple:
        """Logits, and the loss if labels are given.

        The loss is `cross_entropy_and_dice`. With deep supervision it is the weighted mean of that of the logits and
        of the coarser heads' logits interpolated to the size of the labels, each level at half the weight of the next
        finer one (as nnU-Net, arXiv 1904.08128, does). The coarser heads run only when labels are given.

        Args:
            pixel_values: (N, num_channels, *S), floating; cast to the type of the weights.
            labels: (N, *S), integer, classes 0..num_labels-1 or `config.loss_ignore_index`.
            output_hidden_states: Also return the features: L encoder levels, finest first, then L-1 decoder levels,
                coarsest first, (N, hidden_sizes[level], *P / 2^level) with P the padded size. Default: as in `config`.
            return_dict: False returns a tuple without the missing entries. Default: as in `config`.

        Returns:
            `loss` (scalar, float32; with labels), `logits` (N, num_labels, *S), `hidden_states` (when asked for).

        Raises:
            ValueError: `pixel_values` or `labels` have the wrong number of dimensions, channels or pixels, or a type
                that does not fit.
        """
        self._check_inputs(pixel_values, labels)
        size = pixel_values.shape[2:]
        encoded = self._encode(self._pad(pixel_values.to(self.head.weight.dtype)))
        decoded, hidden = [], self.dropout(encoded[-1])
        for upsample, skip in zip(self.decoder, reversed(encoded[:-1]), strict=True):
            hidden = upsample(hidden, skip)
            decoded.append(hidden)
        logits = _crop(self.head(hidden), size)

        loss = None if labels is None else self._loss(logits, decoded, labels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=(*encoded, *decoded) if output_hidden_states else None
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _check_inputs(self, pixel_values: Tensor, labels: Tensor | None) -> None:
        dims, channels = self.config.spatial_dims, self.config.num_channels
        shape = tuple(pixel_values.shape)
        if len(shape) != dims + 2 or shape[1] != channels or 0 in shape[2:]:
            raise ValueError(
                f"pixel_values must have shape {_SPATIAL[dims].axes} with C = {channels}, got {shape}; use "
                f"DimImageProcessor(num_channels={channels}, spatial_dims={dims}) to prepare images."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values must be floating point, got {pixel_values.dtype}; scale them first.")
        if labels is None:
            return
        expected = (shape[0], *shape[2:])
        if tuple(labels.shape) != expected or labels.is_floating_point():
            raise ValueError(f"labels must be integers of shape {expected}, got {labels.dtype} {tuple(labels.shape)}.")

    def _pad(self, pixel_values: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, *P), P multiples of 2^(L-1) that leave two elements or more at the deepest level."""
        size = pixel_values.shape[2:]
        factor = 2 ** (len(self.encoder) - 1)
        padded = [math.ceil(length / factor) * factor for length in size]
        if all(length == factor for length in padded):
            padded[-1] = 2 * factor
        if padded == list(size):
            return pixel_values
        padding = []  # F.pad counts axes from the last
        for length, target in zip(reversed(size), reversed(padded), strict=True):
            padding += [0, target - length]
        return F.pad(pixel_values, padding, mode="replicate")

    def _encode(self, hidden: Tensor) -> list[Tensor]:
        """(N, C, *P) -> one feature map for each level, finest first."""
        encoded = []
        for level, block in enumerate(self.encoder):
            if level:
                hidden = _SPATIAL[self.config.spatial_dims].max_pool(hidden, 2)
            hidden = block(hidden)
            encoded.append(hidden)
        return encoded

    def _loss(self, logits: Tensor, decoded: list[Tensor], labels: Tensor) -> Tensor:
        """Loss of the logits and, with deep supervision, of the coarser heads."""
        ignored = self.config.loss_ignore_index
        loss = cross_entropy_and_dice(logits, labels, ignored)
        weight, total = 1.0, 1.0
        # The finest of the coarser levels first: decoded[-1] belongs to the main head.
        for head, hidden in zip(reversed(self.auxiliary_heads), reversed(decoded[:-1]), strict=False):
            coarse = F.interpolate(
                head(hidden),
                size=decoded[-1].shape[2:],
                mode=_SPATIAL[self.config.spatial_dims].linear,
                align_corners=False,
            )
            weight /= 2
            total += weight
            loss = loss + weight * cross_entropy_and_dice(_crop(coarse, labels.shape[1:]), labels, ignored)
        return loss / total


def _crop(maps: Tensor, size: torch.Size) -> Tensor:
    """(N, C, *P) -> (N, C, *S): undo the padding at the end of each axis."""
    return maps[(..., *(slice(length) for length in size))]


__all__ = ["DimUNetForSemanticSegmentation", "DimUNetPreTrainedModel"]
