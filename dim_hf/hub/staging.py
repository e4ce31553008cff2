"""The folder that becomes the repository: weights byte for byte, code, results without names, figures, card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dim_hf.data.texts import first_line
from dim_hf.hub.card import dataset_name, render_card
from dim_hf.hub.eval_results import RESULTS_PATH, eval_results, list_scores
from dim_hf.hub.privacy import find_leaks, pseudonymous, secret_key, without_machine
from dim_hf.hub.remote_code import add_remote_code
from dim_hf.hub.run_folder import (
    CASES_FILE,
    CONFIG_FILE,
    HASHES,
    PROCESSOR_FILE,
    RESULTS_FILE,
    FinishedRun,
    run_hashes,
)
from dim_hf.hub.statements import Statements
from dim_hf.inference.drift_file import STATISTICS_FILE, read_statistics
from dim_hf.metrics.case_files import write_cases_csv
from dim_hf.metrics.summary_text import write_summary_csv

CARD_FILE = "README.md"
JOB_FILE = "job.json"
SUMMARY_FILE = "summary.csv"
CURVES_FILE = "curves.png"
_SITES_FIGURE = "figures/sites.png"
_CURVES_FIGURE = f"figures/{CURVES_FILE}"
_TEXTS = (".md", ".json", ".csv", ".yaml")


def stage(
    run: FinishedRun, statements: Statements, repo_id: str, folder: Path, *, keep_names: bool, token: str | None
) -> None:
    """Write every file of the repository into an empty folder.

    Args:
        run: A run without obstacles (see `statements.find_obstacles`).
        statements: What people said about it, completed.
        repo_id: `org/name`, for the card.
        folder: Where to.
        keep_names: Publish the names of cases and patients as the data set gives them.
        token: The user's, which no file may hold.

    Raises:
        ValueError: If a text names a place on this machine or holds a token, the weights do not fill the model, or the
            statistics of the sites cannot be read.
        OSError: If a file cannot be read or written.
    """
    for path in (*run.weights, run.folder / CONFIG_FILE, run.folder / PROCESSOR_FILE):
        shutil.copyfile(path, folder / path.name)
    if (run.folder / STATISTICS_FILE).is_file():
        read_statistics(run.folder / STATISTICS_FILE)  # no other file under this name
        shutil.copyfile(run.folder / STATISTICS_FILE, folder / STATISTICS_FILE)
    check_weights(folder)
    code = add_remote_code(folder)
    _write_results(run, statements, folder, keep_names=keep_names)
    summary = run.summary()
    scores = list_scores(summary, "test images had a part in the selection" if run.selected_on_test else "")
    if statements.dataset_id:
        path = folder / RESULTS_PATH
        path.parent.mkdir()
        entries = eval_results(scores, statements.dataset_id, repo_id)
        path.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
    card = render_card(
        run, statements, repo_id, scores, _draw(run, folder), has_code=bool(code), names_kept=keep_names
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    leaks = find_leaks(_texts(folder), run.folder, token)
    if leaks:
        raise ValueError(f"{repo_id} was not pushed: " + "; ".join(leaks))


def check_weights(folder: Path) -> None:
    """Load the model from its folder, and refuse weights that do not fill it exactly.

    Raises:
        ValueError: Naming a tensor that is missing, left over or of another shape; or if nothing can be loaded.
    """
    from transformers import AutoModelForSemanticSegmentation

    import dim_hf  # noqa: F401  makes the Auto classes know DimUNet

    try:
        _, info = AutoModelForSemanticSegmentation.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # damaged safetensors and configurations fail in many ways
        first = first_line(error)
        raise ValueError(f"the weights cannot be loaded ({first}); train again") from error
    wrong = [str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]
    if wrong:
        raise ValueError(f"the weights do not fit {CONFIG_FILE}: {', '.join(sorted(wrong)[:5])}; train again")


def _write_results(run: FinishedRun, statements: Statements, folder: Path, *, keep_names: bool) -> None:
    """Scores by case, means, the arguments, and all that `results.json` says, without the machine's own."""
    cases = run.cases if keep_names else pseudonymous(run.cases, secret_key(run.folder))
    on_test = run.selected_on_test and "test-legacy" not in run.selected
    selected = f"{run.selected}, started from a model chosen on test images (test-legacy)" if on_test else run.selected
    about = {"split": "test", "selected": selected}
    write_cases_csv(cases, folder / CASES_FILE, about={"protocol": "network"} | about)
    write_summary_csv(run.summary(), folder / SUMMARY_FILE, about=about)
    _write_in_mm(run, about, folder, keep_names=keep_names)
    results = without_machine(run.results, _started_places(run.started_from))
    job = results.get("job", {})
    if "dataset" in job.get("data", {}):
        job["data"]["dataset"] = dataset_name(run, statements)
    results[HASHES] = run_hashes(folder)
    _write_json(results, folder / RESULTS_FILE)
    _write_json(job, folder / JOB_FILE)


def _write_in_mm(run: FinishedRun, about: Mapping[str, str], folder: Path, *, keep_names: bool) -> None:
    """Scores of whole volumes in mm, where an evaluation of this very model left them."""
    summary = run.summary_in_mm()
    if summary is None:
        return
    cases = run.cases_in_mm()
    cases = cases if keep_names else pseudonymous(cases, secret_key(run.folder))
    write_cases_csv(cases, folder / "cases-volume-mm.csv", about={"protocol": summary.protocol} | about)
    write_summary_csv(summary, folder / "summary-volume-mm.csv", about=about)


def _started_places(start: Mapping[str, Any]) -> list[str]:
    """Folders of the runs that this one goes back to: sentences name them, too."""
    if not start:
        return []
    return [str(start["model"])] * bool(start.get("model")) + _started_places(start.get("started_from") or {})


def _write_json(values: Mapping, path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _draw(run: FinishedRun, folder: Path) -> dict[str, str]:
    """Figures of scores, none of a patient's image: path in the repository and what is seen there."""
    from dim_hf.metrics.report_figures import box_plots

    box_plots(run.cases, folder / _SITES_FIGURE)
    figures = {_SITES_FIGURE: "Dice of every test case by site and structure."}
    if (run.folder / CURVES_FILE).is_file():
        shutil.copyfile(run.folder / CURVES_FILE, folder / _CURVES_FIGURE)
        figures[_CURVES_FIGURE] = "Losses and validation scores during training."
    return figures


def _texts(folder: Path) -> dict[str, str]:
    """Everything that was written about this run; the code is this package's own."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _TEXTS and path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}
