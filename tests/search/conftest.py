"""A served folder of scenes, shared by the tests of the page."""

import httpx
import pytest

from tests.search.serving import served


@pytest.fixture(scope="module")
def site(cli_environment, tmp_path_factory):
    with served(tmp_path_factory.mktemp("site"), cli_environment) as here:
        yield here


@pytest.fixture(scope="module")
def client(site):
    with httpx.Client(base_url=site.address, timeout=30) as client:
        yield client
