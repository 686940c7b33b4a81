"""Fixtures: one city per database for the whole run, and fresh ones where a test breaks things."""

from __future__ import annotations

import os

import pytest

from harness import Postgres, Server


@pytest.fixture(scope="session")
def city() -> Server:
    """A city on SQLite that all tests share: they make their own people and rooms in it."""
    # Every large block is mapped anew, so that page faults count password hashes (test_identity.py).
    server = Server(env={"MALLOC_MMAP_THRESHOLD_": str(1 << 20)})
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres() -> Postgres:
    """A PostgreSQL; tests that need it are skipped where there can be none."""
    try:
        return Postgres.shared()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def any_city(request: pytest.FixtureRequest) -> Server:
    """A city on each database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("city")
        return
    request.getfixturevalue("postgres")
    server = Server("postgres")
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    """The name of each database, for tests that start servers of their own."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")
    return request.param


@pytest.fixture
def fresh():
    """Starts servers that end with the test: `fresh("sqlite", config={…})`."""
    servers: list[Server] = []

    def make(*arguments, **named) -> Server:
        servers.append(Server(*arguments, **named))
        return servers[-1]

    yield make
    for server in servers:
        server.remove()


# The files that take longest, begun first where several run beside each other: none of them is alone at the end.
LONGEST = ["test_story_crash.py", "test_unread.py", "test_room_life.py", "test_admin.py", "test_contract.py", "test_review2.py",
           "test_crash.py", "test_facility.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_sessionfinish() -> None:
    if Postgres._shared is not None:
        Postgres._shared.stop()
