"""What a finished run remembers of the sites that it saw, for the drift score of its predictions."""

import logging
from pathlib import Path

from dim_hf.data.texts import first_line
from dim_hf.inference.drift_file import STATISTICS_FILE, write_statistics
from dim_hf.inference.drift_fitting import fit_site_statistics
from dim_hf.inference.loading import find_other_network, load_network
from dim_hf.trainer.dim_trainer import DimTrainer

logger = logging.getLogger(__name__)


def write_site_statistics(trainer: DimTrainer) -> Path | None:
    """Write `site_statistics.json` beside the scored model; by one process, after the model was saved.

    The seen sites are those of the labeled images, and of the unlabeled ones where a term of the objective uses them.
    A run that is too small for statistics, or whose machine is, goes without them and says so.

    Args:
        trainer: After `save_model`.

    Returns:
        The file; None where there are no statistics.
    """
    folder = Path(trainer.args.output_dir)
    (folder / STATISTICS_FILE).unlink(missing_ok=True)  # of an earlier run
    data = trainer.train_dataset
    training = [data.labeled] + ([data.unlabeled] if trainer.args.uses_unlabeled_images else [])
    on_validation = trainer.args.select != "test-legacy" and trainer.eval_dataset
    try:
        pair = find_other_network(str(folder))
        statistics = fit_site_statistics(
            trainer.accelerator.unwrap_model(trainer.scored_model),
            training,
            list(trainer.eval_dataset.values()) if on_validation else (),
            other=load_network(str(pair))[0].to(trainer.args.device) if pair else None,
        )
        return write_statistics(statistics, folder)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        said = first_line(error)
        logger.warning("no statistics of the seen sites, so predictions get no drift score: %s", said)
        return None
