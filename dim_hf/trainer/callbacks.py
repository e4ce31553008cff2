"""What a person sees while a run goes on."""

from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

# Log key → its short name beside the progress bar, in this order.
SHOWN = {
    "loss": "loss",
    "divergence": "div",
    "kept_share": "kept",
    "teacher_student_agreement": "agree",
    "eval_mean_dice": "val dice",
    "skipped_steps": "skipped",
}

LONG_EVALUATION = 20  # batches


class DimProgressCallback(ProgressCallback):
    """One bar with rate, remaining time and the numbers that matter, instead of a dictionary a line.

    Everything else is in `trainer.state.log_history` and in the curves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Refresh the numbers beside the bar."""
        if self.training_bar is None or not logs:
            return
        for key, name in SHOWN.items():
            if key in logs and not (key == "skipped_steps" and logs[key] == 0):
                self.shown[name] = f"{logs[key]:.3g}"
        self.training_bar.set_postfix(self.shown)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show a bar for long evaluations only, and only while no training bar is there to be disturbed."""
        if self.training_bar is None and len(kwargs.get("eval_dataloader") or ()) >= LONG_EVALUATION:
            super().on_prediction_step(args, state, control, **kwargs)
