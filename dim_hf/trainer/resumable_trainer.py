"""A Trainer whose checkpoints are complete or absent, and that goes on from them as if nothing had happened."""

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, set_seed
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput

from dim_hf.trainer import checkpoints
from dim_hf.trainer.dim_training_args import DimTrainingArguments
from dim_hf.trainer.termination import TerminatedError, TerminationWatch, heed_only_parent

SCALER_FILE = "scaler.pt"
LAST = "last"

_LOGGER = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """Writes checkpoints aside, verifies them before use, and answers SIGTERM with a checkpoint.

    What is in a checkpoint beyond the state of `transformers.Trainer` is left to a subclass.
    """

    args: DimTrainingArguments

    def __init__(self, model: nn.Module, args: DimTrainingArguments, **kwargs: Any) -> None:
        if args.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint saves in the middle of a step, from which no run goes on exactly: leave it "
                "out; SIGTERM is answered with a checkpoint after the step anyway"
            )
        super().__init__(model=model, args=args, **kwargs)
        self._termination = TerminationWatch()
        self._saved_step = -1
        self._ended_step = -1

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, from the beginning or from a complete checkpoint.

        SIGTERM ends the training after the step in which it came to any process, with a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint folder; True or "last" for the last complete one of the run.
            **kwargs: passed to `transformers.Trainer.train`.

        Raises:
            ValueError: as `find_checkpoint`; or for True without any checkpoint.
            OSError: if a checkpoint cannot be written; the earlier ones stay.
            TerminatedError: (a `SystemExit` with code 143) after SIGTERM.
        """
        checkpoint = self.find_checkpoint(resume_from_checkpoint)
        if resume_from_checkpoint is True and checkpoint is None:
            raise ValueError(f"there is no checkpoint in {self.args.output_dir}")
        if self.args.should_save:
            checkpoints.remove_leftovers(Path(self.args.output_dir))
        self._saved_step = self._ended_step = -1
        with TerminationWatch() as self._termination:
            output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        if checkpoint is not None and checkpoints.step_of(Path(checkpoint)) == self.state.global_step:
            self._load_rng_state(checkpoint)  # no step was left to take, but an epoch may have been begun
        return output

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """As of `transformers.Trainer`, with workers that leave SIGTERM to the trainer."""
        loader = super().get_eval_dataloader(*args, **kwargs)
        loader.worker_init_fn = heed_only_parent
        return loader

    # ---- which checkpoint

    def find_checkpoint(self, wanted: str | bool | None) -> str | None:
        """The checkpoint to go on from, verified; damaged ones above the last complete one are named in warnings.

        Args:
            wanted: a checkpoint folder; True or "last" for the last complete one of the run, if there is any.

        Raises:
            ValueError: if the named one is damaged or there are only damaged ones; if it cannot be resumed from, or
                not with this number of images a step; if the processes see different checkpoints.
        """
        found, refusal = None, None
        try:
            found = self._find_checkpoint(wanted)
        except ValueError as error:
            refusal = error
        if self.args.world_size > 1:
            seen = gather_object([(found, refusal and str(refusal))])
            said = next((text for _, text in seen if text), None)
            if said is None and len({name for name, _ in seen}) > 1:
                said = (
                    f"the processes see different checkpoints in {self.args.output_dir} "
                    f"({', '.join(str(name) for name, _ in seen)}): share the folder among the machines, "
                    "or give save_on_each_node and copy the newest to each"
                )
            refusal = refusal or (ValueError(said) if said else None)
        if refusal is not None:
            raise refusal
        return found

    def _find_checkpoint(self, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None
        if wanted is True or wanted == LAST:
            checkpoint = checkpoints.last_complete(Path(self.args.output_dir))
            if checkpoint is None:
                return None
        else:
            checkpoint = Path(wanted)
            checkpoints.check_complete(checkpoint)
        facts, now = checkpoints.read_facts(checkpoint), self._facts()
        if not now.keys() <= facts.keys():
            raise ValueError(f"{checkpoint} is of another version of dim-hf, from which no run can go on")
        if facts["save_only_model"]:
            raise ValueError(f"{checkpoint} was written with save_only_model: there is nothing to go on from")
        for stream in ("labeled", "unlabeled"):
            _check_images_per_step(checkpoint, stream, facts, now)
        return str(checkpoint)

    def _facts(self) -> dict[str, int | bool]:
        """What decides whether the streams of images can go on where they stood."""
        return {
            "processes": self.args.world_size,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "labeled_batch_size": self.args.labeled_batch_size,
            "unlabeled_batch_size": self.args.unlabeled_images_per_step,
            "save_only_model": self.args.save_only_model,
        }

    # ---- writing

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if trial is None:
            self.store_flos()
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside = checkpoints.aside_of(checkpoint)
        self._locate_best(folder, checkpoint)
        self._together(lambda: _empty(aside) if self.args.should_save else None, checkpoint)
        self._together(lambda: self._write(aside), checkpoint)
        self._together(
            lambda: checkpoints.publish(aside, checkpoint, self._facts()) if self.args.should_save else None,
            checkpoint,
        )
        self._saved_step = self.state.global_step
        self._rotate(checkpoint)

    def _rotate(self, newest: Path) -> None:
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            checkpoints.rotate(newest.parent, self.args.save_total_limit, newest, Path(best) if best else None)

    def _write(self, aside: Path) -> None:
        """This process's files of the checkpoint."""
        self.save_model(str(aside), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(aside))
            self._save_scaler(str(aside))
            self._save_rng_state(str(aside))
        if self.args.should_save:
            states = defaultdict(list)
            for part in (*self.callback_handler.callbacks, self.control):
                if isinstance(part, ExportableState):
                    states[type(part).__name__].append(part.state())
            self.state.stateful_callbacks |= {name: s[0] if len(s) == 1 else s for name, s in states.items()}
            self.state.save_to_json(str(aside / checkpoints.STATE_FILE))

    def _together(self, action: Callable[[], None], checkpoint: Path) -> None:
        """Do one part of the saving in all processes; where one fails, all end, and what was written is removed."""
        aside, failure = checkpoints.aside_of(checkpoint), None
        try:
            action()
        # torch reports a full disk as a RuntimeError, safetensors by an error of its own.
        except (OSError, RuntimeError, SafetensorError) as error:
            failure = checkpoints.write_failure(checkpoint, error)
            failure.__cause__ = error
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if self._in_any_process(failure is not None):
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
            raise failure or OSError(f"cannot write {checkpoint}: another process failed, and says why")

    def _in_any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process: one number summed over all of them, so all have to ask."""
        if self.args.world_size == 1:
            return flag
        return self.accelerator.reduce(torch.tensor(float(flag), device=self.args.device), "sum").item() > 0

    # ---- SIGTERM

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        # Called after each step, and again after the last one of an epoch. To leave only when all that is due at this
        # step was logged, scored and saved keeps a resumed run from missing any of it.
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        step = self.state.global_step
        called_again, self._ended_step = self._ended_step == step, step
        if float(self.state.epoch or 0).is_integer() and not called_again:
            return
        if self._in_any_process(self._termination.requested):
            if self._saved_step != step:
                self._save_checkpoint(model, trial)
            if self.is_world_process_zero():
                _LOGGER.warning(
                    "SIGTERM: left after step %d with a complete checkpoint in %s; go on by %s",
                    step, self.args.output_dir, checkpoints.RESUME_HINT,
                )  # fmt: skip
            raise TerminatedError

    # ---- reading

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._locate_best(Path(self.args.output_dir))
            self._forget_foreign_best()

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved, used = (Path(checkpoint) / SCALER_FILE).is_file(), self.accelerator.scaler is not None
        if saved and used:
            super()._load_scaler(checkpoint)
        elif used:
            _LOGGER.warning("%s has no state of a gradient scaler: its scale starts anew", checkpoint)
        elif saved:
            _LOGGER.warning("%s was trained in fp16, this run is not: the gradient scaler is left out", checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        index = self.args.process_index
        name = f"rng_state_{index}.pth" if self.args.world_size > 1 else "rng_state.pth"
        if (Path(checkpoint) / name).is_file():
            super()._load_rng_state(checkpoint)
            return
        # Not the seed alone: the masks of the first steps would come again.
        set_seed(self.args.seed + self.state.global_step)
        _LOGGER.warning(
            "%s was written by another number of processes: the random draws of dropout start anew in process %d",
            checkpoint, index,
        )  # fmt: skip

    def _locate_best(self, folder: Path, written_now: Path | None = None) -> None:
        """Name the best checkpoint by its place in this folder, wherever the run lay before."""
        best = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best == written_now or best.is_dir()):
            self.state.best_model_checkpoint = str(best)

    def _forget_foreign_best(self) -> None:
        """What another folder holds is no checkpoint of this run, and may not become its result."""
        best = self.state.best_model_checkpoint
        if best is None or Path(best).parent.resolve() == Path(self.args.output_dir).resolve():
            return
        _LOGGER.warning("%s is not in %s: the best step is looked for anew", best, self.args.output_dir)
        self.state.best_model_checkpoint = self.state.best_metric = self.state.best_global_step = None

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        last = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.save_strategy != SaveStrategy.NO and last.is_dir():
            self._rotate(last)  # a kill may have come between the last checkpoint and this
        # With a limit of 1, transformers would remove the newest checkpoint beside the best one: `rotate` has done it.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _load_best_model(self) -> None:
        best = self._best_complete()
        if best is None:
            _LOGGER.warning("no complete checkpoint in %s was scored: the last step is kept", self.args.output_dir)
            self.state.best_model_checkpoint = None
        else:
            self._load_networks(best)

    def _load_networks(self, checkpoint: Path) -> None:
        """Load the weights of a complete checkpoint."""
        raise NotImplementedError

    def _best_complete(self) -> Path | None:
        """The best checkpoint; if it is damaged, the best of the complete ones by the scores in the log."""
        best = Path(self.state.best_model_checkpoint)
        fault = checkpoints.find_fault(best)
        if fault is None:
            return best
        _LOGGER.warning("%s, the best checkpoint, is damaged and passed over: %s", best, fault)
        key = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"
        sign = 1 if self.args.greater_is_better else -1
        scores = {line["step"]: line[key] for line in self.state.log_history if key in line}
        scored = [p for p in checkpoints.checkpoints_in(best.parent) if checkpoints.step_of(p) in scores]
        for path in sorted(scored, key=lambda p: sign * scores[checkpoints.step_of(p)], reverse=True):
            if checkpoints.find_fault(path) is None:
                self.state.best_model_checkpoint = str(path)
                self.state.best_global_step = checkpoints.step_of(path)
                self.state.best_metric = scores[self.state.best_global_step]
                return path
        return None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _check_images_per_step(checkpoint: Path, stream: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to cut a stream into other steps: it could not go on where it stood."""
    name = f"{stream}_batch_size"
    factors = (name, "gradient_accumulation_steps", "processes")
    totals = []
    for facts in (then, now):
        images, accumulated, processes = (facts[factor] for factor in factors)
        totals.append(images * accumulated * processes)
    if totals[0] == totals[1]:
        return
    share, rest = divmod(totals[0], now["processes"])
    cure = f"set {name} × gradient_accumulation_steps to {share}"
    if rest:
        cure = f"start a number of processes that divides {totals[0]}"
    elif not totals[0]:
        cure = "set consistency_weight and divergence_weight to 0"
    raise ValueError(
        f"{checkpoint} was written with {totals[0]} {stream} images a step "
        f"({' × '.join(f'{factor} {then[factor]}' for factor in factors)}), this run has {totals[1]}, so the stream "
        f"cannot go on where it stood: {cure}"
    )
