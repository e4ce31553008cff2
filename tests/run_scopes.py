"""Cases of `test_processes_scopes.py`, trained one after another; started once or by `accelerate launch`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from dim_hf.losses import LossTerms
from dim_hf.trainer.launch import leave_processes
from tests.tiny import tiny_model, tiny_trainer


class Collectives:
    """Counts what DDP and torch.distributed send, by the moment of the step."""

    def __init__(self, trainer):
        self.counts = {"ascent": 0, "descent": 0, "other": 0}
        self.moment = "other"
        self._wrap(trainer, "_first_pass", "ascent")
        self._wrap(trainer, "_backward", "descent")
        for name in ("all_reduce", "broadcast", "all_gather"):
            self._count(name)
        prepare = trainer._prepare_for_training

        def prepare_and_hook(*arguments):
            model, loader = prepare(*arguments)
            if isinstance(model, torch.nn.parallel.DistributedDataParallel):
                model.register_comm_hook(None, self._hook)
            return model, loader

        trainer._prepare_for_training = prepare_and_hook

    def _wrap(self, trainer, method, moment):
        original = getattr(trainer, method)

        def timed(*arguments, **options):
            before = self.moment
            self.moment = before if before == "ascent" else moment
            try:
                return original(*arguments, **options)
            finally:
                self.moment = before

        setattr(trainer, method, timed)

    def _count(self, name):
        original = getattr(dist, name)

        def counted(*arguments, **options):
            self.counts[self.moment] += 1
            return original(*arguments, **options)

        setattr(dist, name, counted)

    def _hook(self, state, bucket):
        self.counts[self.moment] += 1
        future = torch.futures.Future()
        dist.distributed_c10d.all_reduce(bucket.buffer())  # uncounted: not by the module's name
        future.set_result(bucket.buffer() / dist.get_world_size())
        return future


def spoil_one_process(trainer):
    """In step 1, pass 1 of the last process gives NaN."""
    original, steps = trainer._loss_terms, []

    def spoiled(batch, logits):
        terms = original(batch, logits)
        first = trainer.state.global_step not in steps
        steps.append(trainer.state.global_step)
        here = trainer.args.process_index == trainer.args.world_size - 1
        if trainer.state.global_step == 1 and first and here:
            return LossTerms(terms.supervised * float("nan"), terms.consistency, terms.divergence)
        return terms

    trainer._loss_terms = spoiled


CASES = {
    "batch": {"norm": "batch"},
    "batch_teacher": {"norm": "batch", "teacher_statistics": "batch"},
    "weak_views": {
        "norm": "batch",
        "teacher_statistics": "batch",
        "teacher_buffers": "copied",
        "weak_view_ratio": 0.5,
    },
    "local": {"norm": "batch", "perturbation_scope": "local"},
    "local_nan": {"norm": "batch", "perturbation_scope": "local", "spoil": True},
    "global_nan": {"norm": "batch", "spoil": True},
    "local_count": {"norm": "instance", "perturbation_scope": "local", "count": True},
    "global_count": {"norm": "instance", "count": True},
}


def run(name, folder, images):
    settings = dict(CASES[name])
    model = tiny_model(norm=settings.pop("norm")).double()
    spoil, count = settings.pop("spoil", False), settings.pop("count", False)
    sizes = {"labeled_batch_size": images, "unlabeled_batch_size": images}
    trainer = tiny_trainer(folder, model, rho=0.1, max_steps=4, divergence_grid_size=2, **sizes, **settings)
    if spoil:
        spoil_one_process(trainer)
    collectives = Collectives(trainer) if count else None
    trainer.train()
    state = {"processes": torch.tensor(trainer.args.world_size), "skipped": torch.tensor(trainer.skipped_steps)}
    state |= {f"student.{name}": value for name, value in trainer.model.state_dict().items()}
    state |= {f"teacher.{name}": value for name, value in trainer.teacher.state_dict().items()}
    if collectives:
        state |= {f"collectives.{moment}": torch.tensor(n) for moment, n in collectives.counts.items()}
    rank = trainer.args.process_index
    save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.rank{rank}.safetensors")


if __name__ == "__main__":
    for case in sys.argv[3:]:
        run(case, Path(sys.argv[1]), int(sys.argv[2]))
    leave_processes()
