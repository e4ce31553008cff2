"""Arguments of `DimTrainer`: every knob of the method, with its symbol and its legal values."""

import json
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from dim_hf.divergences import ESTIMATORS, F_DIVERGENCES, get_f_divergence
from dim_hf.ema import TEACHER_BUFFERS
from dim_hf.sharpness import ASCENT_OBJECTIVES

SCORED_MODELS = ("teacher", "student")
LABELED_VIEWS = ("weak", "strong")
TEACHER_STATISTICS = ("running", "batch")
STRONG_VIEWS = ("auto", "color", "mri", "microscopy")
PERTURBATION_SCOPES = ("global", "local")
SELECTIONS = ("validation", "last", "test-legacy")

# Of transformers: what would be accepted and change nothing here, or change what is scored, with its default and why.
_WITHOUT_USE = {
    "auto_find_batch_size": (
        False,
        "has no effect: set labeled_batch_size and unlabeled_batch_size; `dim-hf train --dry_run` measures the memory "
        "that they take",
    ),
    "label_smoothing_factor": (0, "has no effect: the terms of the objective have no such factor"),
    "train_sampling_strategy": ("random", "has no effect: the two streams draw their images by the run's seed"),
    "dataloader_drop_last": (
        False,
        "would leave images out of validation and test; training takes whole batches anyway",
    ),
    "prediction_loss_only": (False, "would leave out the predictions that Dice is counted from"),
    "eval_do_concat_batches": (True, "would leave the predictions in pieces, which no metric takes"),
    "bf16_full_eval": (False, "would leave the student in bf16, where small steps are lost: set bf16"),
    "fp16_full_eval": (False, "would leave the student in fp16, where small steps are lost: set fp16"),
}
_SMALLER_IS_BETTER = ("loss", "hd95", "asd")


def _choice(default: str, legal: tuple[str, ...], text: str) -> str:
    return field(default=default, metadata={"help": text, "choices": list(legal)})


def _number(default: float, text: str) -> float:
    return field(default=default, metadata={"help": text})


@dataclass
class DimTrainingArguments(TrainingArguments):
    """`TrainingArguments` of transformers, and the knobs of DiM.

    The objective is L = L_sup + λ_con w(t) L_con + λ_div w(t) L_div, its gradient taken at
    θ + ε in the neighbourhood of radius ρ. The formulas are our reconstruction of arXiv 2411.12350 from established
    parts; each argument names its symbol. The ablations of the method are settings of `consistency_weight`,
    `divergence_weight` and `rho` (see `dim_hf.trainer.ablations`).

    Arguments of transformers with other defaults here: `learning_rate` 1e-3 and `weight_decay`
    1e-4 (a network trained from scratch), `lr_scheduler_type` "polynomial" with power 0.9 (the
    field's decay), `logging_steps` 25, `remove_unused_columns`,
    `ddp_find_unused_parameters` and `ddp_broadcast_buffers` False, `metric_for_best_model`
    "mean_dice" where the best checkpoint is asked for. `per_device_train_batch_size`
    follows from the two batch sizes and must not be given.

    Raises:
        ValueError: for any value outside its range, naming the argument, the value and the
            legal ones.
    """

    learning_rate: float = _number(1e-3, "Initial learning rate.")
    weight_decay: float = _number(1e-4, "Weight decay; acts on the descent step, at the unperturbed weights.")
    lr_scheduler_type: str = field(default="polynomial", metadata={"help": "Learning-rate schedule of transformers."})
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'JSON arguments of the schedule; "polynomial" defaults to power 0.9.'}
    )
    logging_steps: float = _number(25, "Optimizer steps between two lines of the log.")
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "The two streams name no columns."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every weight has a gradient."})
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Running statistics are equal on all processes without it."}
    )

    labeled_batch_size: int = _number(4, "Labeled images per step and process; at least 1.")
    unlabeled_batch_size: int = _number(
        4, "Unlabeled images per step and process; not loaded at all where no term uses them."
    )
    select: str = _choice(
        "validation",
        SELECTIONS,
        "How the saved step is chosen: the best one on validation images (with load_best_model_at_end), the last, "
        "or, as the older benchmarks do, the best one on the test images, which is stamped on every result.",
    )
    balance_domains: bool = field(
        default=False, metadata={"help": "Draw every domain equally often in both streams, whatever its size."}
    )
    consistency_weight: float = _number(1.0, "λ_con ≥ 0, weight of the teacher-student consistency.")
    divergence_weight: float = _number(0.1, "λ_div ≥ 0, weight of the f-divergence between labeled and unlabeled.")
    rampup_ratio: float = _number(
        0.4,
        "Share of all steps, in [0, 1], over which w(t) = exp(-5 (1 - r')²) rises to 1 (arXiv 1610.02242).",
    )
    f_divergence: str = _choice(
        "jensen_shannon",
        tuple(F_DIVERGENCES),
        "f of D_f(P‖Q), P from the logits of labeled images, Q from unlabeled ones.",
    )
    divergence_alpha: float | None = field(
        default=None, metadata={"help": 'α ∉ {0, 1} of f_divergence="alpha"; 0.5 when not given.'}
    )
    divergence_estimator: str = _choice(
        "regional",
        ESTIMATORS,
        "How P and Q are estimated: marginal (mean class shares), regional (the same per region), conditional (the "
        "same per predicted class, blind to class shares that truly differ), or variational (by a critic).",
    )
    divergence_grid_size: int = _number(4, "G ≥ 1, regions along each axis of the `regional` estimator.")
    divergence_memory: float = _number(
        0.95,
        "β in [0, 1), weight of the class masses of earlier steps in P and Q of the closed-form estimators: with 0.95 "
        "they are means over the images of some 20 steps, with 0 over this step's, which differ by chance. Ours.",
    )
    critic_hidden_size: int = _number(32, "Width of the critic T of the `variational` estimator.")
    critic_learning_rate: float = _number(1e-3, "Learning rate of the critic's own Adam.")

    rho: float = _number(0.05, "ρ ≥ 0, radius of the sharpness-aware perturbation; 0 is the plain step, bit for bit.")
    adaptive: bool = field(default=False, metadata={"help": "ASAM (arXiv 2102.11600): ρ relative to the weights."})
    adaptive_eta: float = _number(0.01, "η ≥ 0 of ASAM: lets weights near zero move.")
    ascent_objective: str = _choice("total", ASCENT_OBJECTIVES, "Which loss the perturbation climbs.")
    sam_every: int = _number(1, "A sharpness-aware step each k-th step, plain steps between; k ≥ 1.")
    ascent_fraction: float = _number(
        1.0,
        "Share of each micro-batch's images, in (0, 1], rounded up to whole images, or pairs where they are mixed, "
        "that the perturbation (and with it running statistics and the critic) is computed from in a sharpness-aware "
        "step; the descent always sees all of them.",
    )
    perturbation_scope: str = _choice(
        "global",
        PERTURBATION_SCOPES,
        "global: one perturbation from the gradient of the whole step, all micro-batches and processes; local: one "
        "for each micro-batch on each process (m-sharpness), without communication in the ascent; closed-form "
        "divergences are then each micro-batch's own, and batch normalisation each process's.",
    )
    sync_batch_norm: bool = field(
        default=True,
        metadata={"help": "Across processes, batch normalisation by the statistics of all of them (global scope)."},
    )

    ema_decay: float = _number(0.99, "a in [0, 1), weight of the OLD teacher in θ' ← a θ' + (1 - a) θ.")
    teacher_buffers: str = _choice("averaged", TEACHER_BUFFERS, "Running statistics of the teacher.")
    teacher_statistics: str = _choice(
        "running",
        TEACHER_STATISTICS,
        "What the teacher normalises by while it makes pseudo-labels: its running statistics, those of strong views, "
        "or the batch's, those of the weak views that it sees. With batch normalisation the latter finds inner "
        "structures better at foreign sites, and draws outer ones larger; what it gains, weak views at the end "
        "(`weak_view_ratio`) gain without it. It needs some images a step and process, and `balance_domains` where "
        "sites differ in size.",
    )
    teacher_flips: bool = field(
        default=False,
        metadata={
            "help": "Pseudo-labels from the mean of the teacher's probabilities over the mirror images of each weak "
            "view (arXiv 1712.04440): 4 passes of the teacher in 2D, 8 in 3D, without gradients. For structures that "
            "may lie either way round; weak views take them to, too."
        },
    )
    confidence_threshold: float = _number(
        0.95,
        "τ in [0, 1]: pseudo-labels are kept where max p ≥ τ. What is left out is mostly the border of the structure "
        "that is hardest to see, which then shrinks; 0 keeps all, for a teacher that is good from the start.",
    )
    share_adaptation: float = _number(
        0.0,
        "Strength in [0, 1] of the correction of pseudo-labels to each image's own shares of the foreground classes, "
        "found by expectation maximisation (Saerens, Latinne and Decaestecker, Neural Computation 14, 2002); 0: none. "
        "For two foreground classes or more whose proportions differ between sites; it compounds over the steps and "
        "may overshoot, so choose it on validation images. The labeled images' shares are read once, at the start.",
    )
    scored_model: str = _choice("teacher", SCORED_MODELS, "The model that is selected, scored and saved at the root.")

    strong_view: str = _choice(
        "auto",
        STRONG_VIEWS,
        "Preset of intensity changes; auto: color for 3 channels, else mri.",
    )
    labeled_view: str = _choice(
        "strong", LABELED_VIEWS, "View of the labeled images; `weak` makes a supervised run far less robust."
    )
    structure_warp_probability: float = _number(
        0.0,
        "Share of labeled images in which the inner of two nested structures (the cup in the disc) is given another "
        "size and place, image and label alike, so that the network goes by what it sees and not by the sizes that "
        "the labeled site happens to have. Ours; needs nested `structures`.",
    )
    cutmix_probability: float = _number(
        0.0,
        "Share of labeled-unlabeled pairs mixed in both directions by a box. Of unequal batch sizes one must be a "
        "multiple of the other; the pairs are as many as the fewer images, and the rest stays as it is.",
    )
    amplitude_mixing_probability: float = _number(
        0.0, "Share of labeled images that get the low-frequency spectrum of an unlabeled one (arXiv 2004.05498)."
    )
    half_resolution_ratio: float = _number(
        0.0,
        "Share of the steps, from the first one on, that see all images at half their sides (progressive resizing): "
        "at a quarter of the cost, and what takes the whole picture to see, such as the size of an inner structure, "
        "is learned sooner. Until the remaining steps, scores at full resolution are low.",
    )
    weak_view_ratio: float = _number(
        0.0,
        "Share of the steps, up to the last one, in which the student sees weak views only (arXiv 1909.09148), with "
        "structure warp and boxes but intensities as they are: what strong views teach that is not so of such images, "
        "as another mean size of a structure, is unlearned while the rate is small. So is what other sites need where "
        "only strong views show it (dark nuclei on bright ground beside bright ones on dark): leave it at 0 there. "
        "With batch normalisation take `teacher_buffers=copied`, so that the teacher's running statistics follow.",
    )
    channels_last: bool = field(default=True, metadata={"help": "Memory format of the network and its input."})

    def __post_init__(self) -> None:
        """Check the method's arguments, then let transformers check its own."""
        self._check_ranges()
        self._check_choices()
        self._refuse_without_effect()
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps must be at least 1 (or -1 to count epochs), got {self.max_steps}")
        if self.lr_scheduler_type == "polynomial" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"power": 0.9}
        self._set_batch_size()
        self._set_direction()
        # Without this, several processes on a machine without GPUs would not find each other.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("fp16 needs a GPU: on a CPU it would silently be float32; use bf16 or neither")

    def _set_direction(self) -> None:
        """Transformers would choose by "loss", and take a larger score for the better one unless it is called so."""
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "mean_dice"
        metric = self.metric_for_best_model
        if metric is None:
            return
        larger = not metric.endswith(_SMALLER_IS_BETTER)
        if self.greater_is_better not in (None, larger):
            raise ValueError(
                f"greater_is_better is {self.greater_is_better}, but a {'larger' if larger else 'smaller'} "
                f"metric_for_best_model={metric!r} is better: leave greater_is_better out"
            )
        self.greater_is_better = larger

    def _set_batch_size(self) -> None:
        default = TrainingArguments.__dataclass_fields__["per_device_train_batch_size"].default
        images = self.labeled_batch_size + self.unlabeled_images_per_step
        if self.per_device_train_batch_size not in (default, images):
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}, but a step has {images} images: "
                "leave it out, and set labeled_batch_size and unlabeled_batch_size"
            )
        self.per_device_train_batch_size = images

    @property
    def uses_unlabeled_images(self) -> bool:
        """Whether any term of the objective looks at unlabeled images; without one, nothing is mixed either."""
        return self.consistency_weight > 0 or self.divergence_weight > 0

    @property
    def unlabeled_images_per_step(self) -> int:
        """Unlabeled images that a step loads: none where no term uses them."""
        return self.unlabeled_batch_size if self.uses_unlabeled_images else 0

    def _check_ranges(self) -> None:
        infinity = float("inf")
        ranges = {
            "labeled_batch_size": (1, infinity),
            "gradient_accumulation_steps": (1, infinity),
            "unlabeled_batch_size": (1 if self.uses_unlabeled_images else 0, infinity),
            "consistency_weight": (0, infinity),
            "divergence_weight": (0, infinity),
            "rampup_ratio": (0, 1),
            "divergence_grid_size": (1, infinity),
            "divergence_memory": (0, 1),
            "critic_hidden_size": (1, infinity),
            "critic_learning_rate": (0, infinity),
            "rho": (0, infinity),
            "adaptive_eta": (0, infinity),
            "sam_every": (1, infinity),
            "ascent_fraction": (0, 1),
            "ema_decay": (0, 1),
            "confidence_threshold": (0, 1),
            "share_adaptation": (0, 1),
            "structure_warp_probability": (0, 1),
            "cutmix_probability": (0, 1),
            "amplitude_mixing_probability": (0, 1),
            "half_resolution_ratio": (0, 1),
            "weak_view_ratio": (0, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            # Written so that NaN, which compares false to everything, is refused too.
            if not low <= value <= high or value == infinity:
                limit = f"at least {low}" if high == infinity else f"between {low} and {high}"
                raise ValueError(f"{name} must be {limit} and finite, got {value}")
        if self.ascent_fraction == 0:
            raise ValueError("ascent_fraction must be above 0: without images there is nothing to climb; see rho=0")
        if self.divergence_memory == 1:
            raise ValueError(
                "divergence_memory must be below 1: with 1 the first step would count as much as the last"
            )
        if self.half_resolution_ratio == 1:
            raise ValueError("half_resolution_ratio must be below 1: the last steps must see images as they are")
        if self.ema_decay == 1:
            raise ValueError("ema_decay must be below 1: with 1 the teacher would never learn from the student")

    def _refuse_without_effect(self) -> None:
        """Arguments of transformers that this trainer has no use for."""
        for name, (default, why) in _WITHOUT_USE.items():
            if getattr(self, name, default) != default:
                raise ValueError(f"{name} {why}")
        if self.lr_scheduler_kwargs is not None and not isinstance(self._parsed_scheduler_kwargs(), dict):
            raise ValueError(
                f'lr_scheduler_kwargs must be names and values as JSON, such as {{"power": 0.9}}, got '
                f"{self.lr_scheduler_kwargs!r}"
            )

    def _parsed_scheduler_kwargs(self) -> object:
        """What transformers will read."""
        if not isinstance(self.lr_scheduler_kwargs, str):
            return self.lr_scheduler_kwargs
        try:
            return json.loads(self.lr_scheduler_kwargs)
        except json.JSONDecodeError:
            return None

    def _check_choices(self) -> None:
        legal = {
            "divergence_estimator": ESTIMATORS,
            "ascent_objective": ASCENT_OBJECTIVES,
            "perturbation_scope": PERTURBATION_SCOPES,
            "teacher_buffers": TEACHER_BUFFERS,
            "teacher_statistics": TEACHER_STATISTICS,
            "scored_model": SCORED_MODELS,
            "strong_view": STRONG_VIEWS,
            "labeled_view": LABELED_VIEWS,
            "select": SELECTIONS,
        }
        for name, choices in legal.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        divergence = get_f_divergence(self.f_divergence, self.divergence_alpha)
        if self.divergence_weight > 0 and self.divergence_estimator == "variational" and divergence.conjugate is None:
            raise ValueError(
                f"f_divergence={self.f_divergence!r} has no conjugate in closed form: "
                'use divergence_estimator="regional", "marginal" or "conditional"'
            )
        if self.rho > 0 and self.ascent_objective == "divergence" and self.divergence_weight == 0:
            raise ValueError('ascent_objective="divergence" needs divergence_weight > 0 (or set rho to 0)')
        mixes = self.cutmix_probability > 0 or self.amplitude_mixing_probability > 0
        sizes = sorted((self.labeled_batch_size, self.unlabeled_batch_size))
        if mixes and self.uses_unlabeled_images and sizes[1] % sizes[0]:
            raise ValueError(
                f"mixing pairs labeled with unlabeled images, but labeled_batch_size is {self.labeled_batch_size} and "
                f"unlabeled_batch_size {self.unlabeled_batch_size}: make one a multiple of the other, or set "
                "cutmix_probability and amplitude_mixing_probability to 0"
            )
