from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppRecord, AppSpec, ParameterSpec
from balsam_exec.model.sites import SiteRecord, SiteSpec
from tests.support.services import LiveService
from tests.support.warm import Template


@pytest.fixture(scope="session")
def live(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    directory = tmp_path_factory.mktemp("client-service")
    with LiveService(f"sqlite:///{directory / 'balsam.db'}", directory, template=template) as service:
        yield service


@pytest.fixture
def service(live: LiveService) -> Iterator[Service]:
    service = Service(live.url, live.token, deadline=10)
    yield service
    service.close()


@pytest.fixture
def site(service: Service) -> SiteRecord:
    return service.create_site(SiteSpec(name=f"site-{uuid.uuid4().hex}"))


@pytest.fixture
def app(service: Service, site: SiteRecord) -> AppRecord:
    parameters = {"x": ParameterSpec(required=False, default="1")}
    return service.put_app(
        AppSpec(site_id=site.id, name="Echo", command_template="echo {{ x }}", parameters=parameters)
    )
