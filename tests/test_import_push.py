"""What keeps a data set from being published is said before it is imported."""

import pytest
from click.testing import CliRunner

from dim_hf.cli import main
from tests.test_import import write_site


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "1. the licence is empty"),
        (["--licence", "mit"], "1. the source is empty"),
        (["--licence", "mit", "--origin", "my /home/me/scans"], "names a local path"),
        (["--licence", "mit", "--origin", "here"], "without a token"),
    ],
)
def test_what_keeps_a_data_set_from_being_pushed_is_said_before_the_work(tmp_path, monkeypatch, options, words):
    monkeypatch.setattr("dim_hf.data.hub.commit.get_token", lambda: None)
    monkeypatch.setattr("dim_hf.data.importers.importing.write_case", None)
    source = write_site(tmp_path / "src", "a")
    arguments = ["import", "folders", str(source), str(tmp_path / "out"), "--no-progress", "--push-to-hub", "me/data"]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == 1
    assert words in result.output
    assert not (tmp_path / "out").exists()
