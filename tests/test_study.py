"""Studies: two stages, shared starts, the choice on validation, results without places, and the tables of them."""

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from scipy.stats import wilcoxon

from dim_hf.evaluation.result import SELECTED_ON_TEST
from dim_hf.trainer.job_arguments import parse_job
from dim_hf.trainer.study import Study, StudyRunner, _flat_lists, cells, described, load_study
from dim_hf.trainer.study_figure import study_figure
from dim_hf.trainer.study_records import StudyTable, compare_rows, read_records
from dim_hf.trainer.study_table import format_study, format_variants

BOTH = {
    "dataset": "phantom:fundus",
    "phantom_images_per_domain": 12,
    "num_labeled": 4,
    "num_validation": 2,
    "image_size": 32,
    "select": "last",
    "eval_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "auto_bf16": False,
}
STAGE1 = {
    "hidden_sizes": [8, 16],
    "intensity": "local",
    "consistency_weight": 0,
    "divergence_weight": 0,
    "rho": 0,
    "labeled_batch_size": 4,
    "max_steps": 3,
}
STAGE2 = {
    "max_steps": 2,
    "labeled_batch_size": 2,
    "unlabeled_batch_size": 2,
    "cutmix_probability": 0.5,
    "divergence_estimator": "conditional",
    "rho": 0.02,
}
ROWS = ["stage1", "supervised", "teacher-student", "dim", "teacher-student-unadapted", "upper-bound"]


def write_study(folder, **changes):
    (folder / "first.yaml").write_text(yaml.safe_dump(STAGE1 | {"max_steps": 9}))
    said = {
        "stage1": {"config": "first.yaml", "max_steps": 3},
        "stage2": STAGE2,
        "both": BOTH,
        "labeled_domains": ["camera_a", "camera_b"],
        "rows": ROWS,
        "seeds": [0],
        "share_adaptation": [0.5, 0],
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(said | changes))
    return path


# ---- what is run, and in which order


def test_a_study_file_is_two_configurations_and_lists(tmp_path):
    study = load_study(write_study(tmp_path), ["--seed", "5"])
    assert (study.name, study.labeled_domains, study.seeds) == ("tiny", ("camera_a", "camera_b"), (0,))
    assert study.share_adaptation == (0.0, 0.5)
    assert study.stage1[-2:] == study.stage2[-2:] == ("--seed", "5")
    first = dict(zip(study.stage1, study.stage1[1:], strict=False))
    assert first["--intensity"] == "local"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ["bcp"]}, "unknown rows bcp: choose from stage1"),
        ({"seeds": []}, "seeds of the study is empty"),
        ({"sedes": [1]}, "must have the keys"),
        ({"stage1": {"config": "absent.yaml"}}, "cannot read the configuration"),
        ({"seeds": 3}, "seeds must be a list of whole numbers in brackets, got 3"),
        ({"seeds": [True]}, "seeds must be a list of whole numbers"),
        ({"labeled_domains": "camera_a"}, "labeled_domains must be a list of names in brackets, got 'camera_a'"),
        ({"share_adaptation": 0.5}, "share_adaptation must be a list of numbers"),
        ({"stage1": "first.yaml"}, "stage1 must be lines of `field: value`, got 'first.yaml'"),
        ({"both": None}, "both must be lines of `field: value`, got None"),
    ],
)
def test_faulty_studies_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_study(write_study(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage2": STAGE2 | {"rhoo": 0.1}}, "unknown field '--rhoo'"),
        ({"share_adaptation": [0.5, 1.5]}, "share_adaptation must be between 0 and 1 and finite, got 1.5"),
    ],
)
def test_faults_of_the_second_stage_are_found_before_the_first_is_trained(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("dim_hf.trainer.study.finish_job", lambda *_, **__: pytest.fail("trained"))
    runner = StudyRunner(load_study(write_study(tmp_path, **changes)), tmp_path / "runs", tmp_path / "results", "abc")
    with pytest.raises(ValueError, match=message):
        list(runner.run())


def test_all_of_a_seed_comes_before_the_next_one():
    study = Study("s", (), (), ("a", "b"), ("dim", "upper-bound"), (3, 4))
    order = [(cell.seed, cell.row, cell.labeled_domain) for cell in cells(study)]
    assert order[:3] == [(3, "dim", "a"), (3, "dim", "b"), (3, "upper-bound", "all")]
    assert order[3:] == [(4, *rest) for _, *rest in order[:3]]


@pytest.mark.parametrize("name", ["study-fundus", "study-nuclei", "study-robustness"])
def test_shipped_studies_parse(name):
    study = load_study(f"examples/configs/{name}.yaml")
    for words in (study.stage1, study.stage2):
        assert parse_job(None, [*words, "--use_cpu", "True"]).data.num_labeled == 20


# ---- a whole study on phantoms


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    runner = StudyRunner(load_study(write_study(folder)), folder / "runs", folder / "results", "abc")
    files = [file for _, file in runner.run()]
    return folder, files


def read(folder, name):
    return json.loads((folder / "results" / f"{name}-seed0.json").read_text())


@pytest.mark.slow
def test_every_cell_leaves_a_file_without_places_and_names(finished):
    folder, files = finished
    assert len(files) == len(set(files)) == 11  # five rows in two domains, and the upper bound once
    for file in files:
        text = file.read_text()
        assert str(folder) not in text
        assert str(Path.cwd()) not in text
        assert "phantom:fundus" not in text
        assert len(text.splitlines()) < 400  # lists are on one line each
        record = json.loads(text)
        assert record["code"] == {"git_revision": "abc", "sources_sha256": record["code"]["sources_sha256"]}
        assert len(record["split"]["validation"]["names_sha256"]) == 64
        assert record["steps"] == ([3] if record["row"] == "stage1" else [3, 2])
    names = {row["name"] for row in rows_of(folder)}
    assert not any(name in file.read_text() for name in names for file in files)


def rows_of(folder):

    with (folder / "runs" / "camera_a" / "supervised" / "seed0" / "cases.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_rows_share_their_start_and_differ_in_the_method_only(finished):
    folder, _ = finished
    runs = folder / "runs" / "camera_a"
    jobs = {path.parent.parent.name: json.loads(path.read_text()) for path in runs.glob("*/seed0/job.json")}
    assert set(jobs) == {
        "stage1", "supervised", "teacher-student-share0", "teacher-student-share0.5",
        f"dim-share{read(folder, 'camera_a-dim')['share_adaptation']:g}",
    }  # fmt: skip
    starts = {job["model"]["model_name_or_path"] for name, job in jobs.items() if name != "stage1"}
    assert starts == {str(runs / "stage1" / "seed0")}
    assert jobs["stage1"]["model"]["model_name_or_path"] is None
    records = [read(folder, f"camera_a-{row}") for row in ROWS[:-1]]
    assert len({json.dumps(record["split"]) for record in records}) == 1
    assert len({json.dumps(record["settings"]["stage1"]) for record in records}) == 1
    assert list(records[0]["settings"]) == ["stage1"]
    assert records[1]["settings"]["stage2"]["consistency_weight"] == 0
    assert records[1]["share_adaptation"] is None
    upper = read(folder, "all-upper-bound")
    assert set(upper["split"]["labeled"]["domains"]) == {f"camera_{letter}" for letter in "abcd"}


@pytest.mark.slow
def test_the_second_stage_goes_on_from_the_first(finished):
    """With its processor, too: the intensity of stage 1 is that of stage 2."""
    folder, _ = finished
    for name in ("stage1", "supervised"):
        settings = json.loads((folder / f"runs/camera_a/{name}/seed0/preprocessor_config.json").read_text())
        assert settings["intensity"] == "local"
    start = json.loads((folder / "runs/camera_a/supervised/seed0/dim_training.json").read_text())["started_from"]
    assert start["model"].endswith("stage1/seed0")


@pytest.mark.slow
def test_the_strength_is_chosen_on_validation(finished):
    folder, _ = finished
    for domain in ("camera_a", "camera_b"):
        chosen = read(folder, f"{domain}-teacher-student")
        dices = {
            strength: np.mean(
                [
                    value
                    for name, value in json.loads(
                        (folder / f"runs/{domain}/teacher-student-share{strength}/seed0/results.json").read_text()
                    )["validation"].items()
                    if name in ("disc", "cup")
                ]
            )
            for strength in ("0", "0.5")
        }
        assert chosen["share_choice"] == pytest.approx({"0.0": dices["0"], "0.5": dices["0.5"]})
        assert chosen["share_adaptation"] == (0.5 if dices["0.5"] > dices["0"] else 0.0)
        assert read(folder, f"{domain}-dim")["share_adaptation"] == chosen["share_adaptation"]
        assert read(folder, f"{domain}-teacher-student-unadapted")["share_adaptation"] == 0


@pytest.mark.slow
def test_complete_cells_are_passed_over_and_other_jobs_refused(finished):
    folder, files = finished
    before = {file: file.stat().st_mtime_ns for file in files}
    again = StudyRunner(load_study(folder / "tiny.yaml"), folder / "runs", folder / "results", "def")
    assert [file for _, file in again.run()] == files
    assert {file: file.stat().st_mtime_ns for file in files} == before
    changed = StudyRunner(
        load_study(folder / "tiny.yaml", ["--optim", "sgd"]), folder / "runs", folder / "results", ""
    )
    with pytest.raises(ValueError, match=r"stage1-seed0\.json was made with other optim"):
        list(changed.run())
    files[0].unlink()  # as if it had been interrupted after the training
    assert [file for _, file in again.run()] == files
    assert json.loads(files[0].read_text())["code"]["git_revision"] == "def"
    other = StudyRunner(
        load_study(folder / "tiny.yaml", ["--weight_decay", "0.5"]), folder / "runs", folder / "elsewhere", "abc"
    )
    with pytest.raises(ValueError, match="was run with weight_decay="):
        list(other.run())


@pytest.mark.slow
def test_the_command_prints_the_tables(finished):

    folder, _ = finished
    main = runpy.run_path("examples/study.py")["main"]
    found = CliRunner().invoke(main, ["table", str(folder / "results")], catch_exceptions=False)
    assert found.exit_code == 0
    for row in ROWS:
        assert f"| {row} |" in found.output
    assert "U-Net 8-16, 32 pixels, 3 + 2 steps, 4 labels of one domain" in found.output
    refused = CliRunner().invoke(main, ["table", str(folder / "results"), "--baseline", "supervised-sam"])
    assert "no result of the row 'supervised-sam'" in refused.output


# ---- tables of results made by hand


def make_record(row, labeled, seed, dices, hd95=2.0):
    """Dice of the structure `disc` by test domain and case; `cup` is 0.1 lower."""
    cases, scores = {}, {}
    for domain, values in dices.items():
        both = {"disc": list(values), "cup": [value - 0.1 for value in values]}
        cases[domain] = {
            "patients": list(range(len(values))),
            "scores": {name: {"dice": each, "hd95": [hd95] * len(each)} for name, each in both.items()},
        }
        both["all structures"] = [value - 0.05 for value in values]
        scores[domain] = {name: {"dice": float(np.mean(each)), "hd95": hd95} for name, each in both.items()}
    scores["mean of sites"] = {
        name: {"dice": float(np.mean([scores[d][name]["dice"] for d in dices])), "hd95": hd95}
        for name in ("disc", "cup", "all structures")
    }
    return {
        "study": "hand", "row": row, "labeled_domain": labeled, "seed": seed, "scores": scores, "cases": cases,
        "split": {"test": {"a": 1}, "labeled": {"images": 20}}, "steps": [3, 2], "selected": "last step",
        "settings": {"stage1": {"image_size": 64}, "stage2": {}}, "share_adaptation": None, "share_choice": None,
        "cost": {"stage2": {"seconds_per_step": 0.5, "peak_memory_gib": None}},
        "code": {"git_revision": "abc", "sources_sha256": "0" * 64},
    }  # fmt: skip


@pytest.fixture
def records():
    generator = np.random.default_rng(0)
    found = []
    for row, gain in (("supervised", 0.0), ("dim", 0.02)):
        for labeled in ("a", "b"):
            for seed in (0, 1):
                dices = {domain: np.clip(0.7 + gain + 0.05 * generator.normal(size=9), 0, 1) for domain in ("a", "b")}
                found.append(make_record(row, labeled, seed, dices))
    found.append(make_record("upper-bound", "all", 0, {"a": [0.9] * 9, "b": [0.8] * 9}))
    return found


def test_differences_are_those_of_the_same_cases(records):
    table = StudyTable(records)
    cases, by_cell, below = compare_rows(table, "dim", "supervised")
    own = {}
    for record in records[:8]:
        for domain, found in record["cases"].items():
            both = np.mean([scores["dice"] for scores in found["scores"].values()], axis=0)
            own.setdefault((record["row"], domain), []).append(both)
    differences = {d: np.mean(own["dim", d], 0) - np.mean(own["supervised", d], 0) for d in ("a", "b")}
    assert cases.difference.mean == pytest.approx(np.mean([differences["a"].mean(), differences["b"].mean()]))
    pooled = np.concatenate([differences["a"], differences["b"]])
    assert cases.p_value == pytest.approx(wilcoxon(pooled, correction=True).pvalue)
    assert (cases.better, cases.worse) == ((pooled > 0).sum(), (pooled < 0).sum())
    assert by_cell.pairs == 4
    for labeled in ("a", "b"):
        for domain in ("a", "b"):
            means = {
                row: np.mean([r["scores"][domain]["all structures"]["dice"] for r in records
                              if (r["row"], r["labeled_domain"]) == (row, labeled)])
                for row in ("dim", "supervised")
            }  # fmt: skip
            assert (f"{labeled} → {domain}" in below) == (means["dim"] < means["supervised"])


def test_tables_show_means_and_spread_over_seeds(records):
    text = format_study(records)
    means = {
        (r["labeled_domain"], r["seed"]): 100 * r["scores"]["mean of sites"]["all structures"]["dice"]
        for r in records if r["row"] == "dim"
    }  # fmt: skip
    first = [means["a", 0], means["a", 1]]
    overall = [np.mean([means["a", seed], means["b", seed]]) for seed in (0, 1)]
    assert f"| dim | {np.mean(first):.1f} ± {np.std(first, ddof=1):.1f} |" in text
    assert f"**{np.mean(overall):.1f} ± {np.std(overall, ddof=1):.1f}** |" in text
    assert "| upper-bound | 80.0 | 80.0 | **80.0** | 0 |" in text  # one run stands for every labeled domain
    assert " | 0, 1 |" in text
    assert "64 pixels" in text
    assert "| dim | 0.50 | – | 4 |" in text


def test_tables_by_structure_show_the_same_scores(records):
    text = format_study(records)

    def dice(labeled, seed, test, structure):
        (record,) = [r for r in records if (r["row"], r["labeled_domain"], r["seed"]) == ("supervised", labeled, seed)]
        return 100 * record["scores"][test][structure]["dice"]

    def cell(test, structure, labeled="a"):
        found = [dice(labeled, seed, test, structure) for seed in (0, 1)]
        return f"{np.mean(found):.1f} ± {np.std(found, ddof=1):.1f}"

    sites = "mean of sites"
    by_domain = [cell(sites, structure, labeled) for labeled in "ab" for structure in ("disc", "cup")]
    assert f"| supervised | {' | '.join(by_domain)} |" in text
    by_test = [cell(test, structure, "b") for structure in ("disc", "cup") for test in "ab"]
    assert f"| b | {' | '.join(by_test)} |" in text
    assert "| labels | disc at a | disc at b | cup at a | cup at b |" in text
    assert "| upper-bound | 2.0 | 2.0 | 2.0 | 2.0 | 2.0 | 2.0 |" in text  # HD95, in pixels


def test_differences_by_labeled_domain_are_of_its_runs_alone(records):
    own = [record for record in records if record["labeled_domain"] == "a"]
    alone = compare_rows(StudyTable(own), "dim", "supervised")[0].difference
    assert compare_rows(StudyTable(records), "dim", "supervised", "a")[0].difference == alone
    text = format_study([r for r in records if (r["row"], r["labeled_domain"]) != ("dim", "b")])
    mean, low, high = (f"{100 * value:+.2f}" for value in (alone.mean, alone.low, alone.high))
    assert f"| dim | {mean} [{low}, {high}] | – |" in text  # b has no run


def test_the_figure_shows_each_seed_and_each_difference(records, tmp_path):
    unfinished = [r for r in records if (r["row"], r["labeled_domain"], r["seed"]) != ("dim", "b", 1)]
    text = study_figure(unfinished, tmp_path / "new" / "study.svg").read_text()
    for words in ("labels of", "minus supervised", "upper-bound", ">mean<", ">a<", ">b<"):
        assert words in text
    with pytest.raises(ValueError, match="no result of the row 'bcp'; there are: supervised, dim, upper-bound"):
        study_figure(records, tmp_path / "study.png", baseline="bcp")


def test_marks_are_at_the_means_and_dots_at_the_seeds(records, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("dim_hf.trainer.study_figure.save", lambda figure, path: figures.append(figure) or path)
    study_figure(records, tmp_path / "study.png")
    scores, differences = figures[0].axes
    drawn = [line.get_xdata() for line in scores.lines]
    table = StudyTable(records)
    for row in table.rows:
        for domain in ("a", "b", None):
            dices = 100 * np.array(table.dices(row, domain))
            assert any(len(x) == len(dices) and np.allclose(x, dices) for x in drawn)
            assert any(len(x) == 1 and np.allclose(x, dices.mean()) for x in drawn)
    found = compare_rows(table, "dim", "supervised", "b")[0].difference
    intervals = [line.get_xdata() for line in differences.lines]
    assert any(len(x) == 2 and np.allclose(x, [100 * found.low, 100 * found.high]) for x in intervals)


def test_variants_stand_below_each_other(records):
    first = [r for r in records if r["labeled_domain"] != "b"]
    text = format_variants({"few": first, "many": records})
    few, many = text.splitlines()[2:]
    assert few.startswith("| few | 0, 1 | ")
    cases, _, below = compare_rows(StudyTable(records), "dim", "supervised")
    assert f"{100 * cases.difference.mean:+.2f} [" in many
    assert many.endswith(f"| {len(below)} of 4" + (f": {', '.join(below)} |" if below else " |"))
    with pytest.raises(ValueError, match="'few' has no results of dim and supervised alike"):
        format_variants({"few": [r for r in first if r["row"] != "dim"]})


def test_an_unfinished_row_has_no_mean(records):
    text = format_study([r for r in records if (r["row"], r["labeled_domain"]) != ("dim", "b")])
    (line,) = [line for line in text.splitlines() if line.startswith("| dim |") and "**–**" in line]
    assert line.split("|")[3].strip() == "–"


def test_undefined_cases_are_left_out(records):
    for record in records[:8]:
        for scores in record["cases"]["a"]["scores"].values():
            scores["dice"][0] = None
    assert compare_rows(StudyTable(records), "dim", "supervised")[0].undefined == 1


def test_foreign_files_are_refused(tmp_path, records):
    with pytest.raises(ValueError, match="no result of a study in"):
        read_records(tmp_path)
    for index, record in enumerate(records):
        (tmp_path / f"{index}.json").write_text(json.dumps(record))
    assert len(read_records(tmp_path)) == 9
    for change, message in (({"study": "other"}, "several studies"), ({"split": {"test": {}}}, "several test images")):
        (tmp_path / "x.json").write_text(json.dumps(records[0] | change))
        with pytest.raises(ValueError, match=message):
            read_records(tmp_path)
    for text, message in (("{", "cannot read"), ("{}", "lacks study"), ("[]", "lacks study")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_records(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"settings": {"stage1": {"image_size": 64}, "stage2": {"rho": 0.5}}}, "rho of stage2"),
        ({"settings": {"stage1": {"image_size": 32}, "stage2": {}}}, "image_size of stage1"),
        ({"selected": "best mean_dice on TEST images (test-legacy)"}, "how the checkpoint was chosen"),
        ({"environment": {"precision": "bf16"}}, "precision"),
    ],
)
def test_a_row_is_of_one_way_of_training(tmp_path, records, change, what):
    for index, record in enumerate(records):
        (tmp_path / f"{index}.json").write_text(json.dumps(record | {"environment": {"precision": "float32"}}))
    assert len(read_records(tmp_path)) == 9
    (tmp_path / "7.json").write_text(json.dumps(records[7] | {"environment": {"precision": "float32"}} | change))
    with pytest.raises(ValueError, match=f"row 'dim' with labels of a, seed 0, and of b, seed 1, differ in {what}"):
        read_records(tmp_path)


def test_what_each_cell_chose_or_older_files_do_not_say_may_differ(tmp_path, records):
    for index, record in enumerate(records):
        settings = {"stage1": {"image_size": 64, "seed": record["seed"]}, "stage2": {"share_adaptation": index / 10}}
        environment = {"environment": {"precision": "bf16"}} if index % 2 else {}
        changes = {"settings": settings, "share_choice": {"0": 0.5, "0.7": 0.6}}
        (tmp_path / f"{index}.json").write_text(json.dumps(record | changes | environment))
    assert len(read_records(tmp_path)) == 9


def test_the_caption_warns_of_a_choice_on_test_images(records):
    assert "test images" not in format_study(records).splitlines()[0]
    for record in records[4:8]:
        record["selected"] = "best mean_dice on TEST images (test-legacy)"
    caption = format_study(records).splitlines()[0]
    assert "checkpoint: best mean_dice on TEST images (test-legacy), last step;" in caption
    assert SELECTED_ON_TEST in caption


def test_a_strength_that_was_not_asked_for_is_another_result(tmp_path, records):
    study = load_study(write_study(tmp_path, rows=["dim"], labeled_domains=["camera_a"], share_adaptation=[0.7]))
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "camera_a-dim-seed0.json"
    for found, said in (((0.0, None), "0.0"), ((0.7, {"0.3": 0.5, "0.7": 0.6}), "0.3, 0.7")):
        record = records[0] | {"share_adaptation": found[0], "share_choice": found[1]}
        file.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=f"made with share_adaptation {said}, now it is 0.7: choose another"):
            list(StudyRunner(study, tmp_path / "runs", tmp_path / "results", "abc").run())


def test_settings_do_not_depend_on_the_machine(monkeypatch):
    words = ["--auto_bf16", "False", "--max_steps", "7", "--use_cpu", "True"]
    found = []
    for native in (True, False):
        monkeypatch.setattr("dim_hf.trainer.job_arguments._has_native_bf16", lambda use_cpu, native=native: native)
        found.append(described(parse_job(None, words)))
    assert found[0] == found[1] == {"auto_bf16": False, "max_steps": 7}


def test_lists_of_numbers_are_on_one_line():
    value = {"a": [1, 2.5, None], "b": {"c": []}, "d": [{"e": [1]}], "f": "x, [y"}
    text = _flat_lists(json.dumps(value, indent=1))
    assert json.loads(text) == value
    assert '"a": [1, 2.5, null]' in text
