"""What only people can say about a model, and everything that keeps a run from being published."""

from dataclasses import dataclass, replace
from typing import Any

from dim_hf.data.hub.errors import check_repo_id
from dim_hf.hub.run_folder import CASES_FILE, HASHES, PROCESSOR_FILE, RESULTS_FILE, FinishedRun, run_hashes

_SAYS_NOTHING = ("", "unknown", "none", "n/a", "todo", "tbd")
_PHANTOM_LICENCE = "none needed: the images were drawn by a program"


@dataclass(frozen=True)
class Statements:
    """What only people can say.

    Attributes:
        licence: Of the weights.
        intended_use: Who may use the model for what, and for what not.
        data_statement: Where the images come from, and on which ground they were used.
        data_licence: Of the data; that of the data set's description when None.
        dataset_id: Name of the data set on the Hub, if it is there: metadata can refer to no other.
    """

    licence: str = ""
    intended_use: str = ""
    data_statement: str = ""
    data_licence: str | None = None
    dataset_id: str | None = None


def completed(statements: Statements, run: FinishedRun) -> Statements:
    """The statements with what the data set says about itself where nothing else was said.

    Raises:
        ValueError: If the description of the data cannot be read.
    """
    if statements.data_licence is not None:
        return statements
    if run.is_phantom:
        return replace(statements, data_licence=_PHANTOM_LICENCE)
    description = run.description()
    return replace(statements, data_licence=description.licence) if description else statements


def find_obstacles(run: FinishedRun, statements: Statements) -> list[str]:
    """Everything that keeps a run from being published, each as a sentence with its fix."""
    return _unsaid(statements) + _unfinished(run) + _not_of_one_run(run)


def _unsaid(statements: Statements) -> list[str]:
    needed = (
        (statements.licence, "the licence of the weights is missing; choose one, e.g. --licence cc-by-nc-4.0"),
        (
            statements.intended_use,
            "the intended use is missing; say who may use the model for what, and for what not (--intended-use)",
        ),
        (
            statements.data_statement,
            "the data statement is missing; say where the images come from and on which ground they were used, e.g. "
            "consent or approval (--data-statement)",
        ),
        (statements.data_licence, "the licence of the data is unknown; give it (--data-licence)"),
    )
    obstacles = [sentence for text, sentence in needed if (text or "").strip().lower().strip(".") in _SAYS_NOTHING]
    if statements.dataset_id is not None:
        try:
            check_repo_id(statements.dataset_id)
        except ValueError as error:
            obstacles.append(f"{error} (--dataset-id)")
    return obstacles


def _unfinished(run: FinishedRun) -> list[str]:
    obstacles = []
    if not run.weights or not run.config:
        obstacles.append(f"{run.folder} holds no model.safetensors with a config.json; train to the end")
    elif not (run.folder / PROCESSOR_FILE).is_file():
        obstacles.append(
            f"{run.folder} has no {PROCESSOR_FILE}, so nobody could prepare an image; train with `processing_class`"
        )
    if not run.results:
        obstacles.append(
            f"the run is unfinished: it has no {RESULTS_FILE}, which is written last; go on with it by "
            "dim-hf train ... --resume_from_checkpoint last"
        )
    return obstacles + _missing_results(run)


def _missing_results(run: FinishedRun) -> list[str]:
    """Domains that were held out and not scored, or not wholly."""
    if not run.cases:
        return [f"results by site are missing: there is no {CASES_FILE} with cases; train to the end"]
    scored: dict[str, set[str]] = {}
    for case in run.cases:
        scored.setdefault(case.domain, set()).add(case.name)
    expected = {domain: part.get("images") for domain, part in run.split.get("test", {}).items()}
    return [
        f"results of site {domain!r} are incomplete: {len(scored.get(domain, ()))} of {images} test images were "
        "scored; train to the end"
        for domain, images in expected.items()
        if len(scored.get(domain, ())) != images
    ]


def _not_of_one_run(run: FinishedRun) -> list[str]:
    if not run.results or not run.weights:
        return []
    recorded: Any = run.results.get(HASHES)
    if not isinstance(recorded, dict):
        return [
            f"{RESULTS_FILE} does not say which weights were scored ({HASHES!r} is missing), as in runs of earlier "
            "versions; train again"
        ]
    found = run_hashes(run.folder)
    changed = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
    if not changed:
        return []
    return [
        f"the results are not those of this model: {', '.join(changed)} changed since the run was scored; restore the "
        "files, or train again"
    ]
