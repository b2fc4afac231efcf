from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from balsam_exec.client.config import (
    Credentials,
    credentials_path,
    load_credentials,
    load_service,
    remove_credentials,
    save_credentials,
)
from balsam_exec.model.errors import ConfigurationError

STORED = Credentials(url="http://one", token=SecretStr("sesame"), site="here")


def test_what_is_saved_is_loaded(balsam_home: Path) -> None:
    path = save_credentials(STORED)
    assert path == balsam_home / "credentials.json"
    assert load_credentials() == STORED
    assert json.loads(path.read_text()) == {"url": "http://one", "token": "sesame", "site": "here"}


def test_only_the_owner_may_read_the_file_even_over_an_open_one(balsam_home: Path) -> None:
    balsam_home.mkdir()
    credentials_path().write_text("{}")
    credentials_path().chmod(0o644)
    save_credentials(STORED)
    assert stat.S_IMODE(credentials_path().stat().st_mode) == 0o600
    assert [file.name for file in balsam_home.iterdir()] == ["credentials.json"]


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    save_credentials(STORED)
    monkeypatch.setenv("BALSAM_TOKEN", "other")
    monkeypatch.setenv("BALSAM_SITE", "there")
    found = load_credentials()
    assert (found.url, found.token.get_secret_value(), found.site) == ("http://one", "other", "there")


def test_the_token_of_one_service_is_never_sent_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    save_credentials(STORED)
    monkeypatch.setenv("BALSAM_URL", "http://two")
    with pytest.raises(ConfigurationError, match="balsam login http://two"):
        load_credentials()
    monkeypatch.setenv("BALSAM_URL", "http://one/")  # the same service
    assert load_credentials().token == STORED.token


def test_without_a_service_the_error_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"balsam up.*balsam login URL"):
        load_service()


@pytest.mark.parametrize("text", ["", "not json", '{"token": "sesame"', '{"url": 3, "token": "sesame"}', "[]"])
def test_a_damaged_file_is_an_error_that_does_not_show_the_token(balsam_home: Path, text: str) -> None:
    balsam_home.mkdir()
    credentials_path().write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_credentials()
    assert "damaged" in str(caught.value)
    assert "sesame" not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_the_service_comes_with_its_default_site() -> None:
    save_credentials(STORED)
    service = load_service()
    assert (service.url, service.default_site) == ("http://one", "here")


def test_no_repr_shows_the_token() -> None:
    save_credentials(STORED)
    service = load_service()
    assert "sesame" not in f"{STORED!r} {STORED} {service!r} {service._transport!r}"


def test_removing_credentials_twice_is_fine() -> None:
    save_credentials(STORED)
    remove_credentials()
    remove_credentials()
    assert not credentials_path().exists()
