"""Choose a recipe's settings without a look at test images: variants of two stages, scored on tuning images.

python examples/tune.py run examples/configs/tuning-fundus-64.yaml --runs runs/tuning-64 \
  --results examples/results/tuning-64 --dataset data/fundus
python examples/tune.py table examples/results/tuning-64

Tuning images are training images of domains that have no labels in the run: the training sees them without labels,
like all others of the pool. The file names them; what is finished is passed over. Another tuning takes another
--runs folder: one that holds networks of other settings is refused.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from dim_hf.cli.errors import user_errors

STAGE1 = "stage1"
NETWORK_FILE = "config.json"  # beside the weights of every network
_RESULT_KEYS = {"labels", "start", "variant", "tuning_dice", "validation_dice"}
_KEYS = {"stage1", "stage2", "both", "labeled_domains", "tuning_domains", "tuning_images", "starts", "variants"}


def read_tuning(path: Path) -> dict[str, Any]:
    """The content of a tuning file.

    Raises:
        ValueError: for a file that cannot be read, a missing or unknown key, or a variant of an unknown start.
    """
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the tuning {path}: {error}") from error
    if not isinstance(said, dict) or set(said) != _KEYS:
        differing = sorted(_KEYS ^ set(said)) if isinstance(said, dict) else "all"
        raise ValueError(f"{path} must have the keys {', '.join(sorted(_KEYS))}; missing or unknown: {differing}")
    for name in ("starts", "variants"):
        named = said[name] or {}
        if not isinstance(named, dict) or not all(isinstance(fields or {}, dict) for fields in named.values()):
            raise ValueError(f"{path}: {name} must be lines of `name: {{field: value}}`, got {named!r}")
        said[name] = {variant: fields or {} for variant, fields in (said[name] or {}).items()}
    if not said["starts"]:
        raise ValueError(f"{path} names no starts: give one at least, such as `plain: {{}}`")
    for variant, fields in said["variants"].items():
        if fields.get("start", next(iter(said["starts"]))) not in said["starts"]:
            raise ValueError(f"{path}: {variant} starts from {fields['start']!r}, which is none of the starts")
    return said


def tuning_places(columns: Mapping[str, list], domain: str, first: int, last: int) -> list[int]:
    """Rows of the training images of a domain whose place in the order of labeling is first to last - 1."""
    rows = zip(columns["domain"], columns["split"], columns["labeled_order"], strict=True)
    found = [
        (int(order), index)
        for index, (own, split, order) in enumerate(rows)
        if own == domain and split == "train" and order is not None and first <= int(order) < last
    ]
    return [index for _, index in sorted(found)]


def refuse_other_run(folder: Path, job: Any) -> None:
    """Refuse the folder of a run that is not known to be of this job; where the network came from may have moved.

    Raises:
        ValueError: naming the field that differs, or that nothing says how the network was trained.
    """
    from dim_hf.trainer.job_identity import JOB_FILE, refuse_other_job

    option = "--runs folder, and another --results folder to train its starts there"
    if (folder / NETWORK_FILE).exists() and not (folder / JOB_FILE).exists():
        raise ValueError(
            f"{folder} holds a network, but no {JOB_FILE} that says of which settings: choose another {option}"
        )
    # The path of a start follows from --runs, and `_refuse_other_start` looks into it.
    refuse_other_job(folder, job, but=("model_name_or_path",) if folder.name != STAGE1 else (), option=option)


class Tuner:
    """Trains what is missing, and scores it.

    Args:
        said: of `read_tuning`.
        configs: folder of the configurations that it names.
        runs: folder of the runs.
        results: folder of the JSON files.
        overrides: words for all jobs.
    """

    def __init__(
        self, said: dict[str, Any], configs: Path, runs: Path, results: Path, overrides: tuple[str, ...]
    ) -> None:
        self.said, self.configs, self.runs, self.results, self.overrides = said, configs, runs, results, overrides

    def run(self) -> Iterator[Path]:
        """Each start and variant with each labeled domain; yields its file."""
        labeled_domains = self.said["labeled_domains"]
        planned = [(start, STAGE1, changes) for start, changes in self.said["starts"].items()]
        for variant, fields in self.said["variants"].items():
            changes = {name: value for name, value in fields.items() if name != "start"}
            planned.append((fields.get("start") or next(iter(self.said["starts"])), variant, changes))
        for each in planned:  # a fault in the last one would else be found after the others were trained
            for labeled in labeled_domains:
                self.job(labeled, *each)
        self.results.mkdir(parents=True, exist_ok=True)
        for each in planned:
            for labeled in labeled_domains:
                yield self._file(labeled, *each)

    def _file(self, labeled: str, start: str, variant: str, changes: Mapping[str, Any]) -> Path:
        from dim_hf.trainer.study import described
        from dim_hf.whole_files import write_text

        file = self.results / f"{labeled}-{start}-{variant}.json"
        job = self.job(labeled, start, variant, changes)
        record = {"labels": labeled, "start": start, "variant": variant, "settings": described(job)}
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["settings"] != record["settings"]:
                raise ValueError(f"{file} was made with other settings: choose other --results and --runs folders")
            return file
        if variant != STAGE1:
            self._refuse_other_start(labeled, start)
        record |= self._train_and_score(job)
        write_text(file, json.dumps(record, indent=1) + "\n")
        return file

    def job(self, labeled: str, start: str, variant: str, changes: Mapping[str, Any]) -> Any:
        """The job of a start (the variant `stage1`), or of a variant that goes on from it."""
        from dim_hf.trainer.job_arguments import field_words, job_with
        from dim_hf.trainer.study import stage_words

        stage = self.said[STAGE1 if variant == STAGE1 else "stage2"]
        places = {"labeled_domain": labeled, "output_dir": str(self.runs / labeled / start / variant)}
        if variant != STAGE1:
            places["model_name_or_path"] = str(self.runs / labeled / start / STAGE1)
        words = [*stage_words(stage, self.said["both"], self.configs), *field_words(changes), *field_words(places)]
        return job_with([*words, "--save_strategy", "no", *self.overrides])

    def _refuse_other_start(self, labeled: str, start: str) -> None:
        """A variant goes on from the network of this tuning's start, not from what another one left in its place."""
        job = self.job(labeled, start, STAGE1, self.said["starts"][start])
        folder = Path(job.training.output_dir)
        if not (folder / NETWORK_FILE).exists():
            raise ValueError(
                f"{folder} holds no network to start from: give the --runs folder in which it was trained, or choose "
                "another --results folder to train it again"
            )
        refuse_other_run(folder, job)

    def _train_and_score(self, job: Any) -> dict[str, Any]:
        from dim_hf.trainer.job import make_trainer
        from dim_hf.trainer.job_identity import write_job
        from dim_hf.trainer.study import git_revision

        folder = Path(job.training.output_dir)
        refuse_other_run(folder, job)
        images = self._tuning_images(job)
        trainer, _, _ = make_trainer(job)
        folder.mkdir(parents=True, exist_ok=True)
        write_job(folder, job)  # before the training, so that no network lies there without it
        trained = trainer.train()
        trainer.save_model()
        return self._scores(trainer, images) | {
            "seconds_per_step": round(trained.metrics["train_runtime"] / job.training.max_steps, 3),
            "code": git_revision(),
        }

    def _tuning_images(self, job: Any) -> dict[str, Any]:
        """Rows of the tuning images by domain."""
        from dim_hf.trainer.job import job_source

        rows = job_source(job.data).rows
        if "labeled_order" not in rows.column_names:
            raise ValueError(f"{job.data.dataset} has no column labeled_order: import it with --split-file")
        columns = {name: list(rows[name]) for name in ("domain", "split", "labeled_order")}
        images = {}
        for domain in self.said["tuning_domains"]:
            if domain != job.data.labeled_domain:
                places = tuning_places(columns, domain, *self.said["tuning_images"])
                if not places:
                    raise ValueError(f"domain {domain!r} has no training images {self.said['tuning_images']}")
                images[domain] = rows.select(places)
        return images

    def _scores(self, trainer: Any, images: Mapping[str, Any]) -> dict[str, Any]:
        from dim_hf.data.datasets import SegmentationDataset
        from dim_hf.metrics.report import site_table
        from dim_hf.trainer.job_scores import score_test_sets, validation_scores

        datasets = {domain: SegmentationDataset(rows, trainer.processing_class) for domain, rows in images.items()}
        table = site_table(score_test_sets(trainer, datasets)[1])
        dices: dict[str, dict[str, float]] = {}
        for row in table.rows:
            dices.setdefault(row.domain, {})[row.structure] = round(100 * row.means["dice"], 2)
        validation = {name: round(100 * dice, 2) for name, dice in (validation_scores(trainer) or {}).items()}
        return {"tuning_dice": dices, "validation_dice": validation}


def read_results(folder: Path) -> list[dict[str, Any]]:
    """What `Tuner` wrote.

    Raises:
        ValueError: if there is nothing, or something else.
    """
    from dim_hf.trainer.study_records import read_json_files

    records = []
    for file, record in read_json_files(folder):
        if not isinstance(record, dict) or not set(record) >= _RESULT_KEYS:
            raise ValueError(f"{file} is no result of a tuning; those of a study are for `examples/study.py table`")
        records.append(record)
    if not records:
        raise ValueError(f"there is no result in {folder}: run `examples/tune.py run` first")
    return records


def format_tuning(records: list[dict[str, Any]]) -> str:
    """A line each start and variant: mean tuning Dice by labeled domain, their mean, and validation Dice."""
    from dim_hf.metrics.report import MEAN_OF_SITES
    from dim_hf.trainer.study import of_all_structures
    from dim_hf.trainer.study_table import markdown_table

    domains = list(dict.fromkeys(record["labels"] for record in records))
    pairs = list(dict.fromkeys((record["start"], record["variant"]) for record in records))
    lines = []
    for start, variant in pairs:
        own = {r["labels"]: r for r in records if (r["start"], r["variant"]) == (start, variant)}
        dices = [of_all_structures(own[d]["tuning_dice"][MEAN_OF_SITES]) if d in own else None for d in domains]
        checks = [of_all_structures(own[d]["validation_dice"]) if d in own else None for d in domains]
        mean = f"{sum(dices) / len(dices):.2f}" if None not in dices else "–"
        cells = ["–" if value is None else f"{value:.2f}" for value in (*dices, *checks)]
        lines.append((start, variant, *cells[: len(domains)], mean, *cells[len(domains) :]))
    header = ("start", "variant", *(f"labels: {d}" for d in domains), "mean", *(f"validation: {d}" for d in domains))
    return markdown_table(header, lines)


@click.group()
def main() -> None:
    """Run a tuning, or make the table of its results."""


@main.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("tuning", type=click.Path(exists=True, dir_okay=False))
@click.option("--runs", required=True, type=click.Path(file_okay=False), help="Folder of all runs, for weights.")
@click.option("--results", required=True, type=click.Path(file_okay=False), help="Folder of the JSON files.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def run(tuning: str, runs: str, results: str, overrides: tuple[str, ...]) -> None:
    """Run what is missing of TUNING, a YAML file as examples/configs/tuning-fundus-64.yaml."""
    with user_errors():
        path = Path(tuning)
        for file in Tuner(read_tuning(path), path.parent, Path(runs), Path(results), overrides).run():
            click.echo(file)


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False))
def table(results: str) -> None:
    """Print the Markdown table of the JSON files in RESULTS."""
    with user_errors():
        click.echo(format_tuning(read_results(Path(results))))


if __name__ == "__main__":
    main()
