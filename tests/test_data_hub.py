import io
import json
import socket
import subprocess
import sys
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard

from dim_hf.data.description import DatasetDescription
from dim_hf.data.hub.card import render_card
from dim_hf.data.hub.files import config_names, find_obstacles, write_parts
from dim_hf.data.hub.load import _check_readme, load_hub_dataset
from dim_hf.data.hub.push import publish, push_dataset
from tests.hub_client import DESCRIPTION, make_rows, make_volumes
from tests.hub_server import HubServer, Repo, client_environment


def run_client(names, folder, url, **options):
    """Facts that functions of `hub_client` return, by name."""
    environment = client_environment(url, folder / "home", **options) | {"TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.hub_client", str(folder), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def all_facts(hub, folder):
    return run_client(["round_trip", "volumes", "example"], folder, hub.url)


@pytest.fixture(scope="module")
def facts(all_facts):
    return all_facts["round_trip"]


@pytest.fixture(scope="module")
def repo(hub, facts):
    return hub.repos["dataset", "org/fundus"]


def test_what_was_pushed_is_loaded(facts):
    assert facts["rows"]
    assert facts["features"]
    assert facts["description"]
    assert facts["mapped"] == 6  # no image in memory
    assert facts["plain"] == 2
    assert facts["streamed"]


def test_one_commit_a_push_and_none_for_equal_rows(hub, repo, facts, folder):
    shas = [sha for sha, _ in repo.commits]
    assert facts["url"] == facts["again"] == f"{hub.url}/datasets/org/fundus/tree/{shas[1]}"
    assert len(shas) == 3  # the Hub's own, the first push, and the one of fewer rows
    assert repo.private
    assert not list((folder / "temporary").glob("dim_hf_push_*"))


def test_old_files_go_in_the_same_commit_and_stay_in_the_pinned_one(repo, facts):
    assert facts["fewer"] == 3
    assert facts["pinned"] == [True, True]
    assert {path.split("/")[1] for path in repo.commits[1][1] if path.startswith("data/")} == {"Site_A", "Zurich"}
    assert {path.split("/")[1] for path in repo.commits[2][1] if path.startswith("data/")} == {"Site_A"}


def test_no_local_path_leaks(repo, folder):
    for path, content in repo.commits[1][1].items():
        assert str(folder).encode() not in content
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content))
            values = table.drop_columns(["image", "label"]).to_pylist()
            assert str(folder) not in json.dumps(values)
            for column in ("image", "label"):
                files = [value for value in table.column(column).to_pylist() if value is not None]
                assert all(value["bytes"] and "/" not in value["path"] for value in files)


def test_card_has_front_matter_for_the_hub_and_for_datasets(repo):
    text = repo.commits[1][1]["README.md"].decode()
    data = DatasetCard(text).data
    assert data.license == "cc-by-4.0"
    assert data.task_categories == ["image-segmentation"]
    assert data.size_categories == "n<1K"
    front = yaml.safe_load(text.split("---\n")[1])
    assert [config["config_name"] for config in front["configs"]] == ["Site_A", "Zurich"]
    assert front["configs"][0]["data_files"][0] == {"split": "train", "path": "data/Site_A/train-*.parquet"}
    assert [info["config_name"] for info in front["dataset_info"]] == ["Site_A", "Zurich"]
    assert {split["name"]: split["num_examples"] for split in front["dataset_info"][0]["splits"]} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }


def test_example_examines_and_pushes(hub, all_facts, folder):
    facts = all_facts["example"]
    assert "org/example was not pushed; correct this first:" in facts["refused"]
    assert "1. the source is empty" in facts["refused"]
    assert facts["code"] == 0, facts["pushed"]
    sha = hub.repos["dataset", "org/example"].commits[-1][0]
    assert f"dim-hf train --dataset org/example@{sha}" in facts["pushed"]
    card = hub.files("dataset", "org/example")["README.md"].decode()
    assert "Licence: my own\n\nSource:\n\n- our lab" in card
    assert "- A name holds blanks or characters beyond ASCII (" in card
    assert str(folder) not in card


def test_scans_are_imported_published_and_trained_on_by_name(hub, folder):
    facts = run_client(["lifecycle"], folder, hub.url)["lifecycle"]
    code, output = facts["pushed"]
    assert code == 0, output
    assert f"{hub.url}/datasets/org/scans/tree/" in output
    assert facts["trained"][0] == 0, facts["trained"]
    split = facts["split"]
    assert {domain: part["images"] for domain, part in split["test"].items()} == {"one": 2, "other": 2}
    assert (split["labeled"]["images"], split["validation"]["images"], split["unlabeled"]["images"]) == (4, 2, 10)
    assert facts["channels"] == 1


def test_volumes_keep_voxels_and_affine(hub, all_facts):
    assert all_facts["volumes"] == {"rows": True, "features": True, "affine": True, "dtype": "int16"}
    files = sorted(path for path in hub.files("dataset", "org/volumes") if path.endswith(".parquet"))
    assert files == [f"data/scanner/train-{index:05d}-of-00002.parquet" for index in range(2)]


def test_loaded_once_loads_offline(repo, folder):
    (folder / "pin").write_text(repo.commits[1][0])
    facts = run_client(["offline"], folder, closed_address(), offline=True)["offline"]
    assert facts["main"] == 3
    assert facts["pinned"]
    for kind, message in (facts["never"], facts["push"]):
        assert kind == "ConnectionError"
        assert "cannot be reached" in message
    assert facts["never"][1].startswith("org/other could not be loaded")


def closed_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_nobody_listens(tmp_path):
    facts = run_client(["without_token"], tmp_path, closed_address())["without_token"]
    assert facts["load"][0] == facts["push"][0] == "ConnectionError"
    assert "org/fundus could not be pushed: the Hub cannot be reached" in facts["push"][1]


def test_private_without_token(hub, repo, tmp_path):
    facts = run_client(["without_token"], tmp_path, hub.url, token=None)["without_token"]
    assert facts["load"][0] == "ValueError"
    assert "org/fundus could not be loaded" in facts["load"][1]
    assert "private" in facts["load"][1]
    assert facts["push"][0] == "ValueError"
    assert "hf auth login" in facts["push"][1]


def test_refusals_name_repository_and_fix(hub, repo, tmp_path):
    for name, files in (("foreign", {"data/train.parquet": b"x"}), ("public", {"README.md": b"# hello"})):
        hub.repos["dataset", f"org/{name}"] = Repo(private=False)
        hub.repos["dataset", f"org/{name}"].commit(files)
    hub.fault = lambda method, path: 400 if "org/broken/commit" in path or "org/upload.git" in path else None
    facts = run_client(["refused"], tmp_path, hub.url)["refused"]
    assert {kind for kind, _ in facts.values()} == {"ValueError"}
    expected = {
        "missing": ("org/nothing could not be loaded", "no such data set"),
        "revision": ("org/fundus@0123", "no such revision"),
        "rights": ("other/fundus could not be pushed", "right to write"),
        "token": ("org/new could not be pushed", "the token is not valid"),
        "foreign": ("org/foreign holds other files (data/train.parquet)", "choose another name"),
        "public": ("org/public exists and is public", "make it private"),
        "broken": ("org/broken could not be pushed", "refused"),
        "upload": ("org/upload could not be pushed", "refused"),
    }
    for name, parts in expected.items():
        for part in parts:
            assert part in facts[name][1]
    # Not half pushed: nothing but the commit that the Hub makes itself; and no temporary files.
    assert len(hub.repos["dataset", "org/broken"].commits) == len(hub.repos["dataset", "org/upload"].commits) == 1
    assert not list((tmp_path / "temporary").glob("dim_hf_push_*"))


def parquet(table, features=None):
    buffer = io.BytesIO()
    schema = features.arrow_schema if features else None
    pq.write_table(pa.table(table, schema=schema), buffer)
    return buffer.getvalue()


def test_repositories_of_others(hub, tmp_path):
    make_rows(tmp_path)
    image = {"bytes": (tmp_path / "image_0.png").read_bytes(), "path": None}
    files = datasets.Features({"image": datasets.Image()})
    nested = datasets.Features({"image": datasets.Image(), "views": datasets.List(datasets.Image())})
    readme = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"
    secret = tmp_path / "secret.parquet"
    secret.write_bytes(parquet({"image": [image]}, files))
    good = {"data/train-0.parquet": parquet({"image": [image, image]}, files)}
    repos = {
        "paths": {"train.parquet": parquet({"image": [image, {"bytes": None, "path": "/etc/passwd"}]}, files)},
        "nested": {"train.parquet": parquet({"image": [image], "views": [[image]]}, nested)},
        "readme": {**good, "README.md": readme.format("README.md").encode()},
        "outside": {**good, "README.md": readme.format(secret).encode()},
        "csv": {"train.csv": b"image\n/etc/passwd\n"},
        "damaged": {"train.parquet": b"PAR1 but no more"},
        "text": {"train.parquet": parquet({"image": ["/etc/passwd"]})},
        "splits": {"train.parquet": parquet({"image": [image], "split": ["all"]}, datasets.Features(
            {"image": datasets.Image(), "split": datasets.Value("string")}))},
        "yaml": {**good, "README.md": b"---\nconfigs: [\n---\n"},
        "short": {**good, "README.md": b"---\ndataset_info:\n  splits:\n  - name: train\n    num_examples: 9\n---\n"},
        "plain": good,
    }  # fmt: skip
    for name, content in repos.items():
        hub.repos["dataset", f"org/{name}"] = Repo(private=False)
        hub.repos["dataset", f"org/{name}"].commit(content)
    facts = run_client(["hostile"], tmp_path, hub.url)["hostile"]
    expected = {
        "paths": "holds paths or addresses instead of files",
        "nested": "holds files within lists",
        "readme": "README",
        "outside": "only parquet files of the repository are read",
        "csv": "holds no parquet files",
        "damaged": "cannot be read",
        "text": "push it as Image or Nifti",
        "yaml": "cannot be read",
        "short": "cannot be read (NonMatchingSplitsSizesError",
        "splits": "the splits ['all'] are unknown",
    }
    for name, part in expected.items():
        assert facts[name][0] == "ValueError"
        assert facts[name][1].startswith(f"org/{name}")
        assert part in facts[name][1]
    assert facts["plain"] == [
        True,
        ["image", "label", "domain", "patient", "name", "split"],
        {"domain": ["default"] * 2, "patient": ["", ""], "name": ["default_row_000000", "default_row_000001"],
         "split": ["", ""]},
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["fundus", "org/", "org/a/b", "org/a b", "../a", "org/..", "https://x/y"])
def test_repository_names(name):
    with pytest.raises(ValueError, match="is no name of a data set on the Hub"):
        load_hub_dataset(name)


def test_two_revisions():
    with pytest.raises(ValueError, match="two revisions"):
        load_hub_dataset("org/a@one", revision="two")


def test_everything_that_is_missing_is_listed(tmp_path):
    rows = make_rows(tmp_path)
    (tmp_path / "image_2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="org/a was not pushed") as error:
        push_dataset(rows, DatasetDescription({0: "a", 1: "b", 2: "c"}, {"b": [1]}), "org/a", progress=False)
    message = str(error.value)
    assert all(part in message for part in ("1. the licence is empty", "2. the source is empty", "image_2.png"))


def test_errors_of_the_doctor_stop_the_push(tmp_path):
    rows = make_rows(tmp_path)
    (tmp_path / "mask_2.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"org/a was not pushed(.|\n)*1\. the licence(.|\n)*2\. \S*mask_2.png: .*Fix: "
    ):
        publish(rows, DESCRIPTION, "org/a", licence="unknown")


def test_obstacles_without_opening_a_file(tmp_path):
    rows = make_rows(tmp_path)
    assert find_obstacles(rows, DESCRIPTION) == []
    texts = {
        "name": ["a", "a", *"bcdefg"],
        "split": ["val", *[""] * 7],
        "source_file": ["/home/me/scan.png", r"C:\me\scan.png", *["scan.png"] * 6],
    }
    for column, values in texts.items():
        if column in rows.column_names:
            rows = rows.remove_columns(column)
        rows = rows.add_column(column, values)
    description = replace(DESCRIPTION, source=["copied from /home/me/data", "https://a.org/home/me/"])
    obstacles = find_obstacles(rows, description)
    assert len(obstacles) == 4
    expected = ["'copied from /home/me/data'", "(2 rows)", "Site A/a", "['val']"]
    assert all(part in text for part, text in zip(expected, obstacles, strict=True))


def test_names_of_configurations():
    assert config_names(["Zürich", "Site A", "b.c-d_1"]) == {
        "Site A": "Site_A",
        "Zürich": "Zurich",
        "b.c-d_1": "b.c-d_1",
    }
    assert config_names(["__x", "../y"]) == {"../y": "y", "__x": "x"}
    for domains, part in (
        (["a b", "A_B"], "'A_B' and 'a b'"),
        (["上海"], "rename the domain"),
        (["x" * 97], "rename"),
    ):
        with pytest.raises(ValueError, match=part):
            config_names(domains)


def test_files_are_equal_for_equal_rows_and_cut_by_size(tmp_path):
    rows = make_rows(tmp_path / "source")
    written = []
    for name in ("one", "two"):
        parts = write_parts(rows, tmp_path / name, max_shard_bytes=1, progress=False)
        written.append([(path, (tmp_path / name / path).read_bytes()) for part in parts for path in part.files])
    assert written[0] == written[1]
    assert [path.split("/", 1)[1] for path, _ in written[0]] == [
        f"{config}/{part}.parquet"
        for config in ("Site_A", "Zurich")
        for part in (
            "train-00000-of-00002",
            "train-00001-of-00002",
            "validation-00000-of-00001",
            "test-00000-of-00001",
        )
    ]
    (tmp_path / "source" / "mask_5.png").unlink()
    with pytest.raises(ValueError, match=r"mask_5.png cannot be read"):
        write_parts(rows, tmp_path / "three", progress=False)


def test_card_shows_texts_as_they_are(tmp_path):
    rows = make_rows(tmp_path / "source").rename_column("diagnosis", "`x`<b>")
    parts = write_parts(rows, tmp_path / "out", progress=False)
    text = render_card(rows, DESCRIPTION, "org/fundus", parts, ["a | <script>alert(1)</script>\n# title"])
    body = text.split("---\n", 2)[2]
    for part in (
        "| Zürich | `Zurich` | train | 2 | 2 | 2 |",
        "| Site A | `Site_A` | train | 2 | 1 | 2 |",
        "| midss | 128 | 1 (rim) |",
        "published \\| by the authors",
        "- a \\| &lt;script&gt;alert(1)&lt;/script&gt; \\# title",
        "Somebody et al. &lt;2020&gt;, <https://example.org/data_set>",
        "spacing along the 2 axes in mm: 0.5 × 0.25",
        ", \\`x\\`&lt;b&gt;",
        "2 rows belong to no split",
        "no medical device",
        "no approval to release clinical data",
    ):
        assert part in body
    assert "dim-hf train --dataset org/fundus --labeled_domain 'Site A'" in body


def test_card_of_volumes_reads_headers(tmp_path):
    rows = make_volumes(tmp_path / "source")
    parts = write_parts(rows, tmp_path / "out", progress=False)
    description = DatasetDescription({0: "a", 1: "b"}, {"b": [1]}, spatial_dims=3, licence="ask us", source=["here"])
    text = render_card(rows, description, "org/volumes", parts)
    assert "- 2 × 3 × 4: 2" in text
    assert "| scanner | `scanner` | train | 2 | 1 | unknown |" in text
    assert "license: other\n" in text
    assert "license_name: ask-us\n" in text


@pytest.mark.parametrize(
    "front",
    [
        "configs:\n- {config_name: a, data_files: http://127.0.0.1:9/x.parquet}",
        "configs:\n- {config_name: a, data_files: {train: ['zip://x::hf://y']}}",
        "configs:\n- {config_name: a, data_files: /usr/**}",
        "configs:\n- {config_name: a, data_dir: ../other}",
        "configs:\n- {config_name: '..', data_files: data/*.parquet}",
        "a: &a [x, x]\nb: [*a, *a]",
    ],
)
def test_a_readme_is_checked_before_it_is_followed(tmp_path, front):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Card\n")
    with pytest.raises(ValueError, match="only parquet files of the repository"):
        _check_readme(tmp_path / "README.md", "org/name")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- {config_name: a, data_files: data/a/train-*}\n---\n")
    _check_readme(tmp_path / "README.md", "org/name")


def test_the_cards_code_can_be_run(repo):
    text = repo.commits[1][1]["README.md"].decode()
    (line,) = [line for line in text.splitlines() if line.startswith("from dim_hf")]
    exec(line)
