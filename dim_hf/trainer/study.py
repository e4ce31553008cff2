"""A study: the rows of a table × the labeled domain × the seed, in two stages of training, run as far as is missing.

Stage 1 is supervised and the same for all rows of a labeled domain and seed; stage 2 goes on from its network, and is
one setting of the method a row. So all rows have had the same steps, images a step and augmentation. A finished run
leaves one JSON file that holds scores and settings, but no image, no name of a case and no path: such files can be
published, and `dim_hf.trainer.study_table` makes the table of them.
"""

import hashlib
import itertools
import json
import math
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.report import ALL_STRUCTURES, site_table
from dim_hf.trainer.ablations import ABLATIONS
from dim_hf.trainer.comparison import UPPER_BOUND, setting_job
from dim_hf.trainer.finished_jobs import finish_job
from dim_hf.trainer.job_arguments import ALL_LABELED, Job, config_words, field_words, job_with
from dim_hf.trainer.job_identity import relevant_fields
from dim_hf.whole_files import write_text

STAGE1 = "stage1"
UNADAPTED = "teacher-student-unadapted"
ROWS = (STAGE1, *ABLATIONS, UNADAPTED, UPPER_BOUND)
"""The supervised start by itself, in fewer steps; the ablations; teacher-student learning without `share_adaptation`;
supervision by the labels of all domains."""

ALL_DOMAINS = "all"
_REFERENCE = "teacher-student"  # the row by which a strength of `share_adaptation` is chosen
# Where something lies, on this machine; the data set is known by the hashes of the split.
_PLACES = ("dataset", "model_name_or_path")
# What follows from the machine where it is not said; the results state the precision beside the settings.
_OF_THE_MACHINE = ("bf16", "use_cpu")
_SUPERVISED = (STAGE1, *(row for row, off in ABLATIONS.items() if "consistency" in off), UPPER_BOUND)


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: of the study, in its files.
        stage1: fields of the supervised stage, as command-line words.
        stage2: fields of the full method, which goes on from stage 1.
        labeled_domains: each in turn has the labels.
        rows: names in `ROWS`, those first that matter most: rows are finished one after the other.
        seeds: of network, streams and draws; all rows of a seed are finished before the next one.
        share_adaptation: strengths to choose from, for each labeled domain and seed: the one by which
            teacher-student learning scores best on validation images, the smaller one of equals.
    """

    name: str
    stage1: tuple[str, ...]
    stage2: tuple[str, ...]
    labeled_domains: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    share_adaptation: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        """Refuse what could not run."""
        unknown = sorted(set(self.rows) - set(ROWS))
        if unknown:
            raise ValueError(f"unknown rows {', '.join(unknown)}: choose from {', '.join(ROWS)}")
        for name in ("labeled_domains", "rows", "seeds", "share_adaptation"):
            if not getattr(self, name):
                raise ValueError(f"{name} of the study is empty: give at least one")


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study's YAML file.

    Its `stage1` and `stage2` name a configuration each (`config`, beside the file) and fields that differ from it;
    `both` has fields of both stages; `labeled_domains`, `rows`, `seeds` and `share_adaptation` are lists.

    Args:
        path: the file.
        overrides: words such as `["--dataset", "data/fundus"]`, for both stages.

    Raises:
        ValueError: for an unreadable file, a missing or unknown key, or what `Study` refuses.
    """
    path = Path(path)
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the study {path}: {error}") from error
    needed, optional = {"stage1", "stage2", "labeled_domains", "rows", "seeds"}, {"both", "share_adaptation"}
    if not isinstance(said, dict) or not needed <= set(said) <= needed | optional:
        raise ValueError(f"{path} must have the keys {', '.join(sorted(needed))}, and may have {sorted(optional)}")

    def words(stage: Mapping[str, Any]) -> tuple[str, ...]:
        return (*stage_words(stage, said["both"], path.parent), *overrides)

    said = {"both": {}, "share_adaptation": [0.0]} | said
    _check_kinds(said, path)
    lists = {name: tuple(said[name]) for name in ("labeled_domains", "rows", "seeds")}
    strengths = tuple(sorted(map(float, said["share_adaptation"])))
    return Study(path.stem, words(said["stage1"]), words(said["stage2"]), **lists, share_adaptation=strengths)


def _check_kinds(said: Mapping[str, Any], path: Path) -> None:
    """Refuse a value of another kind, such as one word where a list is wanted."""
    items = {
        "labeled_domains": ("names", str),
        "rows": ("names", str),
        "seeds": ("whole numbers", int),
        "share_adaptation": ("numbers", int | float),
    }
    for key, (kind, wanted) in items.items():
        values = said[key]
        if not isinstance(values, list) or not all(isinstance(v, wanted) and not isinstance(v, bool) for v in values):
            raise ValueError(f"{path}: {key} must be a list of {kind} in brackets, got {values!r}")
    for key in ("stage1", "stage2", "both"):
        if not isinstance(said[key], dict):
            raise ValueError(f"{path}: {key} must be lines of `field: value`, got {said[key]!r}")


def stage_words(stage: Mapping[str, Any], both: Mapping[str, Any], folder: Path) -> list[str]:
    """The fields of one stage of a study as command-line words; a field said later counts.

    Args:
        stage: fields, and perhaps `config`, the file that they differ from.
        both: fields of all stages.
        folder: of that file.
    """
    fields = {name: value for name, value in {**stage, **both}.items() if name != "config"}
    return [*(config_words(folder / stage["config"]) if "config" in stage else []), *field_words(fields)]


@dataclass(frozen=True)
class Cell:
    """One row of the table with one labeled domain and one seed; the upper bound has the labels of all domains."""

    row: str
    labeled_domain: str
    seed: int

    @property
    def file_name(self) -> str:
        """Of its JSON file."""
        return f"{self.labeled_domain}-{self.row}-seed{self.seed}.json"


def cells(study: Study) -> Iterator[Cell]:
    """The cells in the order in which they are run: by seed, then by row, then by labeled domain."""
    for seed in study.seeds:
        for row in study.rows:
            domains = (ALL_DOMAINS,) if row == UPPER_BOUND else study.labeled_domains
            yield from (Cell(row, domain, seed) for domain in domains)


class StudyRunner:
    """Runs what is missing of a study.

    Args:
        study: what to run.
        runs: folder of the runs, which hold images' names, weights and overlays.
        results: folder of the JSON files.
        revision: of the code, beside the hash of its files; asked of git when None.
    """

    def __init__(self, study: Study, runs: Path, results: Path, revision: str | None = None) -> None:
        self.study, self.runs, self.results = study, runs, results
        self.code = {"git_revision": revision or git_revision(), "sources_sha256": sources_hash()}

    def run(self) -> Iterator[tuple[Cell, Path]]:
        """Run each cell that has no file yet, and yield it with its file.

        Raises:
            ValueError: for any fault in data or arguments, or where a file or a run is of another job.
        """
        self._check_jobs()
        self.results.mkdir(parents=True, exist_ok=True)
        for cell in cells(self.study):
            file = self.results / cell.file_name
            if file.exists():
                self._refuse_other_settings(cell, file)
            else:
                text = json.dumps(self._record(cell), indent=1, allow_nan=False)
                write_text(file, _flat_lists(text) + "\n")
            yield cell, file

    def _check_jobs(self) -> None:
        """Make the jobs of each row once, so that a fault in the last one is found before the first is trained."""
        firsts = {cell.row: cell for cell in reversed(list(cells(self.study)))}
        for cell in firsts.values():
            start = Path(self._stage1_job(cell).training.output_dir)
            if cell.row == STAGE1:
                continue
            strengths = self._candidates(cell)
            rows = (cell.row,) if len(strengths) == 1 else (cell.row, _REFERENCE)
            for strength, row in itertools.product(strengths, rows):
                self._stage2_job(replace(cell, row=row), strength, start)

    def _refuse_other_settings(self, cell: Cell, file: Path) -> None:
        found = json.loads(file.read_text(encoding="utf-8"))
        choice = found["share_choice"] or {found["share_adaptation"]: None}
        known = tuple(sorted(strength if strength is None else float(strength) for strength in choice))
        if known != self._candidates(cell):
            raise ValueError(
                f"{file} was made with share_adaptation {', '.join(map(str, known))}, now it is "
                f"{', '.join(map(str, self._candidates(cell)))}: choose another --results folder"
            )
        wanted = self._settings(cell, found["share_adaptation"])
        if found["settings"] != wanted:
            names = {name for _, name in differing_settings(wanted, found["settings"])}
            raise ValueError(f"{file} was made with other {', '.join(sorted(names))}: choose another --results folder")

    def _settings(self, cell: Cell, strength: float | None) -> dict[str, dict[str, Any]]:
        start = self._stage1_job(cell)
        if cell.row == STAGE1:
            return {"stage1": described(start)}
        job = self._stage2_job(cell, strength, Path(start.training.output_dir))
        return {"stage1": described(start), "stage2": described(job)}

    def _record(self, cell: Cell) -> dict[str, Any]:
        strength, choice = self._strength(cell)
        stage1_job = self._stage1_job(cell)
        stages = [finish_job(stage1_job)]
        if cell.row != STAGE1:
            start = Path(stage1_job.training.output_dir)
            stages.append(finish_job(self._stage2_job(cell, strength, start)))
        results, cases = stages[-1]
        return {
            "study": self.study.name,
            "row": cell.row,
            "labeled_domain": cell.labeled_domain,
            "seed": cell.seed,
            "share_adaptation": strength,
            "share_choice": choice,
            "selected": results["training"]["selected"],
            "steps": [each["training"]["max_steps"] for each, _ in stages],
            "validation": results["validation"],
            "scores": _scores(cases),
            "cases": _case_lists(cases),
            "cost": {f"stage{number}": each["cost"] for number, (each, _) in enumerate(stages, start=1)},
            "split": results["split"],
            "settings": self._settings(cell, strength),
            "environment": results["environment"],
            "code": self.code,
        }

    def _candidates(self, cell: Cell) -> tuple[float | None, ...]:
        """The strengths of `share_adaptation` that a cell may have: one, or those that validation chooses from."""
        if cell.row in _SUPERVISED:
            return (None,)
        return (0.0,) if cell.row == UNADAPTED else self.study.share_adaptation

    def _strength(self, cell: Cell) -> tuple[float | None, dict[str, float] | None]:
        """The strength of `share_adaptation` for a cell, and the validation Dice it was chosen by."""
        strengths = self._candidates(cell)
        if len(strengths) == 1:
            return strengths[0], None
        stage1_job = self._stage1_job(cell)
        finish_job(stage1_job)
        start = Path(stage1_job.training.output_dir)
        reference = replace(cell, row=_REFERENCE)
        dices = {}
        for strength in strengths:
            results, _ = finish_job(self._stage2_job(reference, strength, start))
            if not results["validation"]:
                raise ValueError(
                    "share_adaptation is chosen on validation images: give num_validation, or one strength"
                )
            dices[strength] = of_all_structures(results["validation"])
        best = max(strengths, key=dices.__getitem__)  # the first of equals, and they are sorted
        return best, {str(strength): dice for strength, dice in dices.items()}

    def _stage1_job(self, cell: Cell) -> Job:
        folder = self.runs / cell.labeled_domain / "stage1" / f"seed{cell.seed}"
        changes = {"seed": cell.seed, "output_dir": str(folder), "resume_from_checkpoint": "last"}
        return job_with([*self.study.stage1, *self._domain_words(cell)], **changes)

    def _stage2_job(self, cell: Cell, strength: float | None, start: Path) -> Job:
        setting, name = cell.row, cell.row
        words = [*self.study.stage2, *self._domain_words(cell), "--model_name_or_path", str(start)]
        if strength is not None:
            setting = "teacher-student" if cell.row == UNADAPTED else cell.row
            name = f"{setting}-share{strength:g}"
            words += ["--share_adaptation", str(strength)]
        return setting_job(words, setting, cell.seed, self.runs / cell.labeled_domain / name / f"seed{cell.seed}")

    def _domain_words(self, cell: Cell) -> list[str]:
        if cell.labeled_domain == ALL_DOMAINS:
            return ["--labeled_domain", self.study.labeled_domains[0], "--num_labeled", str(ALL_LABELED)]
        return ["--labeled_domain", cell.labeled_domain]


def described(job: Job) -> dict[str, Any]:
    """The fields of a job that are not the defaults, without places and without what follows from the machine."""
    usual = relevant_fields(job_with([]))
    return {
        name: value
        for part, values in relevant_fields(job).items()
        for name, value in values.items()
        if name not in (*_PLACES, *_OF_THE_MACHINE) and value != usual[part].get(name)
    }


def differing_settings(
    one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Stage and name of each field in which two results' `settings` differ, sorted."""
    stages = {stage: (one.get(stage, {}), other.get(stage, {})) for stage in sorted({*one, *other})}
    return [
        (stage, name)
        for stage, (own, others) in stages.items()
        for name in sorted({*own, *others})
        if own.get(name) != others.get(name)
    ]


def of_all_structures(by_structure: Mapping[str, Any]) -> Any:
    """What is said of the mean of all structures; where there is one structure, of that."""
    return by_structure.get(ALL_STRUCTURES, next(iter(by_structure.values()), None))


def _defined(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value


def _scores(cases: Sequence[CaseResult]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Domain (or the mean of sites) → structure → means over cases, and how many were missed."""
    scores: dict[str, dict[str, dict[str, float | None]]] = {}
    table = site_table(cases)
    for row in table.rows:
        means = {name: _defined(row.means[name]) for name in ("dice", "jaccard", "hd95", "assd")}
        counts = {"cases": row.cases, "missed": row.missed, "undefined": row.undefined}
        scores.setdefault(row.domain, {})[row.structure] = means | counts
    return scores


def _case_lists(cases: Sequence[CaseResult]) -> dict[str, dict[str, Any]]:
    """Each domain's scores by case, in the order of the names, which are left out, as are the patients': numbers."""
    lists: dict[str, dict[str, Any]] = {}
    for case in sorted(cases, key=lambda case: case.name):
        own = lists.setdefault(case.domain, {"patients": {}, "scores": {}})
        own["patients"][case.name] = case.patient or case.name
        scores = own["scores"].setdefault(case.structure, {"dice": [], "hd95": []})
        for metric, values in scores.items():
            values.append(_defined(round(getattr(case, metric), 5)))
    for own in lists.values():
        numbers = {patient: number for number, patient in enumerate(dict.fromkeys(own["patients"].values()))}
        own["patients"] = [numbers[patient] for patient in own["patients"].values()]
    return lists


def _flat_lists(text: str) -> str:
    """Indented JSON with each innermost list on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: "[" + " ".join(found.group()[1:-1].split()) + "]", text)


def git_revision() -> str:
    """The commit of the code, with `-dirty` where files differ from it; "unknown" outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def sources_hash() -> str:
    """SHA-256 of the package's Python files, which tells codes apart that no commit holds."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
