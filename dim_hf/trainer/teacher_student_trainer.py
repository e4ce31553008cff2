"""A Trainer with two models: the student that learns, and the teacher that follows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from dim_hf.data.collator import collate
from dim_hf.ema import ema_decay_at, make_teacher, update_teacher
from dim_hf.hub.push import push_run
from dim_hf.hub.statements import Statements
from dim_hf.losses import resize_logits, supervised_loss
from dim_hf.metrics.cases import check_structures
from dim_hf.metrics.report import mean_of_defined
from dim_hf.metrics.trainer_metrics import LOGGED_METRICS, build_compute_metrics, class_structures
from dim_hf.trainer.callbacks import DimProgressCallback
from dim_hf.trainer.dim_training_args import DimTrainingArguments
from dim_hf.trainer.meters import Meters
from dim_hf.trainer.resumable_trainer import ResumableTrainer

TEACHER_FOLDER = "teacher"
SUMMARY_FILE = "dim_training.json"
_OWN = frozenset({"compute_metrics", "compute_loss_func", "data_collator", "preprocess_logits_for_metrics"})


class TeacherStudentTrainer(ResumableTrainer):
    """Keeps, evaluates, saves and restores a teacher beside the student of `transformers.Trainer`.

    What the two learn is left to a subclass.

    Args:
        model: the student; any model of transformers whose output has `logits` (N, K, *S'), at the
            input's resolution or a lower one.
        args: the arguments.
        train_dataset: passed on.
        eval_dataset: labeled datasets by domain, or one.
        structures: what is scored, name → class ids; `model.config.structures` or every
            non-background class when None.
        **kwargs: passed to `transformers.Trainer`.
    """

    args: DimTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel,
        args: DimTrainingArguments,
        *,
        train_dataset: Dataset,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        structures: Mapping[str, list[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        if args.push_to_hub:
            raise ValueError(
                "push_to_hub publishes checkpoints while they are made, without results: leave it out, and call "
                "trainer.push_to_hub(...) or `dim-hf push` when the run is finished"
            )
        self.structures = dict(structures or class_structures(model.config))
        _check_structures(self.structures, model.config.num_labels)
        if getattr(model, "auxiliary_head", None) is not None:
            # Its loss is no part of the objective, and DDP would wait for its gradients.
            model.auxiliary_head.requires_grad_(False)
        if own := sorted(_OWN & set(kwargs)):
            raise ValueError(f"{own[0]} is this trainer's own, made from its arguments and `structures`: leave it out")
        if eval_dataset is not None and not isinstance(eval_dataset, Mapping):
            eval_dataset = {"validation": eval_dataset}
        for domain, dataset in (eval_dataset or {}).items():
            if not len(dataset):
                raise ValueError(
                    f'eval_dataset {domain!r} has no images: leave it out, with eval_strategy="no" if it is all'
                )
        if args.load_best_model_at_end:
            _check_metric(args.metric_for_best_model, list(eval_dataset or {}), self.structures)
        if args.channels_last:
            _to_channels_last(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=dict(eval_dataset) if eval_dataset is not None else None,
            data_collator=collate,
            compute_metrics=build_compute_metrics(self.structures),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over images: transformers must not rescale it
        if self.pop_callback(ProgressCallback) is not None:  # absent with disable_tqdm
            self.add_callback(DimProgressCallback)
        self.teacher = make_teacher(self.model)
        self.meters = Meters()
        self.skipped_steps = 0
        self._evaluated: nn.Module | None = None
        self._evaluated_shape: torch.Size | None = None

    @property
    def scored_model(self) -> nn.Module:
        """The model that is selected, scored and saved: the teacher unless the arguments say otherwise."""
        return self._model_named(self.args.scored_model)

    def _model_named(self, name: str) -> nn.Module:
        return self.teacher if name == "teacher" else self.model

    def follow_student(self) -> None:
        """Move the teacher after an optimizer step, by the decay of that step."""
        decay = ema_decay_at(self.state.global_step, self.args.ema_decay)
        update_teacher(self.teacher, self.model, decay, self.args.teacher_buffers)

    # ---- evaluation

    def evaluate(
        self,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score teacher and student on each domain.

        Args:
            eval_dataset: labeled datasets by domain; the trainer's own when None.
            ignore_keys: outputs to leave out, as in `transformers.Trainer`.
            metric_key_prefix: first part of each key.

        Returns:
            `<prefix>_<domain>_<structure>_<metric>` of the scored model, `<prefix>_<domain>_student_…`
            (or `_teacher_…`) of the other one, and `<prefix>_mean_dice`: the scored model's Dice,
            mean over structures, then over domains, in [0, 1].

        Raises:
            ValueError: for images without labels, or of several sizes.
        """
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        by_prefix = {metric_key_prefix: datasets}
        if isinstance(datasets, Mapping):
            by_prefix = {f"{metric_key_prefix}_{domain}": dataset for domain, dataset in datasets.items()}
        metrics: dict[str, float] = {}
        for prefix, dataset in by_prefix.items():
            metrics |= self._evaluate_both(dataset, ignore_keys, prefix)
            if f"{prefix}_dice" not in metrics:
                raise ValueError(f"the images of {prefix} have no labels to be scored by: give them masks")
        dices = [metrics[f"{prefix}_dice"] for prefix in by_prefix]
        metrics[f"{metric_key_prefix}_mean_dice"] = mean_of_defined(dices)
        # Once, with everything: callbacks such as early stopping look for the score of the selection.
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate_both(self, dataset: Dataset, ignore_keys: list[str] | None, prefix: str) -> dict[str, float]:
        other = "student" if self.args.scored_model == "teacher" else "teacher"
        loader = self.get_eval_dataloader(dataset)
        metrics: dict[str, float] = {}
        for name, key in ((other, f"{prefix}_{other}"), (self.args.scored_model, prefix)):
            self._evaluated = self._model_named(name)
            try:
                metrics |= self.evaluation_loop(
                    loader, "Evaluation", ignore_keys=ignore_keys, metric_key_prefix=key
                ).metrics
            finally:
                self._evaluated = None
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """One pass over one data set, by `evaluate` or `predict`: its images are of one size, another's may differ."""
        self._evaluated_shape = None
        return super().evaluation_loop(*args, **kwargs)

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Predict one batch with the model under evaluation; the scored one outside `evaluate`.

        Returns:
            The supervised loss, the predicted classes (N, *S) (not the logits, which would fill the
            memory), and the labels (N, *S); loss and labels are None for images without labels.
        """
        inputs = self._prepare_inputs(inputs)
        self._check_shape(inputs["pixel_values"].shape[2:])
        network = self._evaluated if self._evaluated is not None else self.scored_model
        was_training = network.training
        network.eval()
        with self.accelerator.autocast():
            logits = network(pixel_values=inputs["pixel_values"].to(network.dtype)).logits
        network.train(was_training)
        labels = inputs.get("labels")
        logits = resize_logits(logits, inputs["pixel_values"].shape[2:])
        loss = None if labels is None else supervised_loss(logits, labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits.argmax(dim=1), labels)

    def _check_shape(self, shape: torch.Size) -> None:
        """Transformers joins all predictions into one array, so they need one size."""
        if self._evaluated_shape not in (None, shape):
            raise ValueError(
                f"images of {tuple(self._evaluated_shape)} and of {tuple(shape)} pixels in one data set: "
                "give the image processor a size"
            )
        self._evaluated_shape = shape

    # ---- log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the steps' measurements to each training line of the log."""
        if "learning_rate" in logs:
            logs |= self.meters.pop(self._mean_over_processes)
            logs["skipped_steps"] = self.skipped_steps
        super().log(logs, start_time)

    def _mean_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="mean")

    # ---- saving and loading

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the scored model (called by the user), or student and teacher (for a checkpoint)."""
        at_root = Path(output_dir or self.args.output_dir).resolve() == Path(self.args.output_dir).resolve()
        # `push_to_hub` of transformers saves at the root as it saves checkpoints: the scored model belongs there.
        if _internal_call and not at_root:
            super().save_model(output_dir, _internal_call=True)
            return
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            self._save_network(self.scored_model, folder)
            (folder / SUMMARY_FILE).write_text(json.dumps(self.training_summary(), indent=2) + "\n", encoding="utf-8")

    def push_to_hub(self, repo_id: str | None = None, **options: Any) -> str | None:
        """Publish the finished run: the checks, files and card of `dim-hf push`.

        Args:
            repo_id: `org/name`; `hub_model_id` when None.
            **options: fields of `Statements` (`licence`, `intended_use`, `data_statement`, ...) and arguments of
                `push_run` (`private`, `token`, `keep_names`).

        Returns:
            Address of the pushed commit; None in all processes but the first.

        Raises:
            ValueError: with the list of everything missing, such as `results.json` of a run that was not scored.
            ConnectionError: if the Hub cannot be reached or fails.
        """
        if not self.is_world_process_zero():
            return None
        said = {field.name: options.pop(field.name) for field in fields(Statements) if field.name in options}
        options = {"private": bool(self.args.hub_private_repo), "token": self.args.hub_token} | options
        return push_run(self.args.output_dir, repo_id or self.args.hub_model_id or "", Statements(**said), **options)

    @cached_property  # as it was at first: a run may write into the folder that it started from
    def started_from(self) -> dict[str, Any]:
        """What the run says whose model this one started from; empty for a new network or one from elsewhere."""
        return _facts_of_run(getattr(self.model.config, "_name_or_path", ""))

    def training_summary(self) -> dict[str, Any]:
        """Which of the two models was saved, at which step, how that step was selected, and what the run started from.

        Where the weights that it started from were chosen on test images, `selected` says so, too.
        """
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        where = "TEST images (test-legacy)" if self.args.select == "test-legacy" else "validation"
        selected = f"best {self.args.metric_for_best_model} on {where}" if best else "last step"
        started = {"started_from": self.started_from} if self.started_from else {}
        if "test-legacy" in str(self.started_from.get("selected")):
            selected += f", started from {self.started_from['model']} ({self.started_from['selected']})"
        return {
            "scored_model": self.args.scored_model,
            "selected": selected,
            "step": self.state.best_global_step if best else self.state.global_step,
            "best_metric": self.state.best_metric if best else None,
            "max_steps": self.state.max_steps,
            "skipped_steps": self.skipped_steps,
        } | started

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self._save_network(self.model, folder)
        self._save_network(self.teacher, folder / TEACHER_FOLDER)
        (folder / SUMMARY_FILE).write_text(json.dumps(self.training_summary(), indent=2) + "\n", encoding="utf-8")

    def _save_network(self, network: nn.Module, folder: Path) -> None:
        self.accelerator.unwrap_model(network).save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        # As text: transformers' training_args.bin is a pickle, and nothing here reads it.
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # By from_pretrained: transformers' own loading passes over weights whose saved names differ from the model's.
        _load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            _load_weights(self.teacher, Path(checkpoint) / TEACHER_FOLDER)
            self._recall(json.loads((Path(checkpoint) / SUMMARY_FILE).read_text(encoding="utf-8")))

    def _recall(self, summary: dict[str, Any]) -> None:
        """Take up what a checkpoint's `training_summary` says of the steps before it."""
        self.skipped_steps = summary["skipped_steps"]

    def _load_networks(self, checkpoint: Path) -> None:
        _load_weights(self.model, checkpoint)
        _load_weights(self.teacher, checkpoint / TEACHER_FOLDER)


def _load_weights(network: nn.Module, folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: the checkpoint was not written by this trainer, or not wholly")
    loaded = type(network).from_pretrained(folder, dtype=network.dtype)
    network.load_state_dict(loaded.state_dict())


def _facts_of_run(name: str) -> dict[str, Any]:
    """How the model in a folder was selected and trained on how many labels, as far as its files say."""
    folder = Path(name)
    if not name or not (folder / SUMMARY_FILE).is_file():
        return {}
    facts: dict[str, Any] = {"model": name, "selected": "unknown"}
    for file in (folder / SUMMARY_FILE, folder / "results.json"):
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            kept = ("scored_model", "selected", "step", "started_from")
            facts |= {key: found[key] for key in kept if key in found}
            labeled = found.get("split", {}).get("labeled", {})
            facts |= {"labeled_images": labeled["images"]} if "images" in labeled else {}
        except (OSError, ValueError, TypeError, AttributeError):
            continue  # this run's own summary is not lost for a damaged one of another
    return facts


def _check_structures(structures: Mapping[str, list[int]], num_labels: int) -> None:
    check_structures(structures)
    for name, classes in structures.items():
        if max(classes) >= num_labels:
            raise ValueError(
                f"structure {name!r} has the class {max(classes)}, but the classes are 0..{num_labels - 1}"
            )


def _check_metric(name: str | None, domains: Sequence[str], structures: Mapping[str, list[int]]) -> None:
    """Refuse to choose the checkpoint by what `evaluate` will not give."""
    scores = ["loss", *LOGGED_METRICS, *(f"{part}_{metric}" for part in structures for metric in LOGGED_METRICS)]
    scores += [f"{network}_{score}" for network in ("student", "teacher") for score in scores]
    known = ["mean_dice", *(f"{domain}_{score}" for domain in domains for score in scores)]
    if (name or "").removeprefix("eval_") not in known:
        raise ValueError(
            f"metric_for_best_model is {name!r}, which no validation gives: choose mean_dice, or a domain and a "
            f"score, such as {domains[0] if domains else 'hospital_1'}_dice"
        )


def _to_channels_last(model: nn.Module) -> None:
    """Convert 4D and 5D weights to channels-last; others have no such format."""
    for parameter in model.parameters():
        if parameter.dim() in (4, 5):
            layout = torch.channels_last if parameter.dim() == 4 else torch.channels_last_3d
            parameter.data = parameter.data.to(memory_format=layout)
