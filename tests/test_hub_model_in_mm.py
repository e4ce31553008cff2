"""Results in millimetres that `dim-hf evaluate --protocol volume-mm` left in a run, on its card."""

import json
from dataclasses import replace

from dim_hf.hub.push import preview_push
from dim_hf.hub.run_folder import read_finished_run
from dim_hf.hub.staging import stage
from dim_hf.hub.statements import completed
from dim_hf.metrics.case_files import read_cases_csv, write_cases_csv
from tests.hub_runs import SAID, make_run

NAME = "org/dim-fundus"


def leave_volumes(run, **said):
    """What `dim-hf evaluate --protocol volume-mm` leaves, of cases that look like volumes."""
    folder = run / "evaluation-volume-mm"
    folder.mkdir(exist_ok=True)
    cases = [replace(case, unit="mm", hd95=7.25) for case in read_cases_csv(run / "cases.csv")]
    write_cases_csv(cases, folder / "cases.csv", about={"protocol": "volume-mm"})
    hashes = json.loads((run / "results.json").read_text())["sha256"]
    (folder / "evaluation.json").write_text(json.dumps({"split": "test", "run_hashes": hashes} | said))


def test_results_in_mm_are_shown_where_they_are_of_this_model(tmp_path):
    run, folder = make_run(tmp_path / "run"), tmp_path / "out"
    leave_volumes(run)
    folder.mkdir()
    found = read_finished_run(run)
    stage(found, completed(SAID, found), NAME, folder, keep_names=False, token=None)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "HD95 (mm)" in card
    assert "7.25" in card
    assert "The first table is in pixels" in card
    assert {case.unit for case in read_cases_csv(folder / "cases-volume-mm.csv")} == {"mm"}
    names = {case.name for case in read_cases_csv(run / "cases.csv")}
    assert not any(name in (folder / "cases-volume-mm.csv").read_text(encoding="utf-8") for name in names)
    for other in ({"run_hashes": {"model.safetensors": "0"}}, {"split": "train"}, {"run_hashes": None}):
        leave_volumes(run, **other)
        preview = preview_push(run, NAME, SAID)
        assert "HD95 (mm)" not in preview.card
        assert not any("volume-mm" in path for path in preview.sizes)
