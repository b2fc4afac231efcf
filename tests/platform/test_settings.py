"""A site's settings.yml."""

from __future__ import annotations

from pathlib import Path

import pytest

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.platform.settings import SiteDirectory, SiteSettings


@pytest.mark.parametrize(
    "name", ["theta-gpu", "yes", "null", "12", "a: b # c", "'quoted\"", "Zürich", "x" * 200, "two\nlines"]
)
def test_a_new_site(tmp_path: Path, name: str) -> None:
    site = SiteDirectory(tmp_path / "new" / "site")
    assert not site.exists
    site.create(name)
    assert site.exists
    assert site.settings() == SiteSettings(name=name)
    assert site.data.is_dir()
    assert site.log.is_dir()
    assert site.qsubmit.is_dir()
    site.record_id(4711)
    assert site.settings() == SiteSettings(name=name, site_id=4711)
    for other in ("other", name):
        site.record_name(other)
        assert site.settings() == SiteSettings(name=other, site_id=4711)


def test_what_its_owner_wrote_stays(tmp_path: Path) -> None:
    site = SiteDirectory(tmp_path)
    site.create("mine", 1)
    site.job_template.write_text("#!/bin/bash\nmodule load everything\nexec {{ launcher }}\n")
    text = site.settings_file.read_text().replace("cores: null", "cores: 64  # of each node")
    site.settings_file.write_text(text)
    site.create("other", 2)
    site.record_id(3)
    assert "module load" in site.job_template.read_text()
    assert site.settings_file.read_text() == text.replace("site_id: 1", "site_id: 3")
    assert site.settings() == SiteSettings(name="mine", site_id=3, cores=64)


def test_an_id_where_there_was_no_line_for_it(tmp_path: Path) -> None:
    site = SiteDirectory(tmp_path)
    site.settings_file.write_text("name: mine")
    site.record_id(5)
    assert site.settings() == SiteSettings(name="mine", site_id=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ncoers: 4\n", "there is no setting 'coers' (there are: name, site_id, scheduler, cores, gpus"),
        ("name: x\ncores: 0\ngpus: -1\n", "cores: Input should be greater than or equal to 1; gpus: "),
        ("name: x\nscheduler: cobalt\n", "scheduler: "),
        ("name: x\nprocessing:\n  worker: 4\n", "setting 'processing.worker' (there are: workers, hook_timeout_sec)"),
        ("name: x\nprocessing: {workers: 0}\n", "processing.workers: Input should be greater than or equal to 1"),
        ("name: x\nprocessing: {hook_timeout_sec: 0}\n", "processing.hook_timeout_sec: Input should be greater than 0"),
        ("name: ''\n", "name: "),
        ("name: x\nsite_id: 0\n", "site_id: "),
        ("", "holds no settings"),
        ("{", "is not YAML"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "settings.yml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        SiteSettings.load(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "settings.yml") in str(caught.value)


def test_no_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="balsam site init"):
        SiteSettings.load(tmp_path / "nothing")
