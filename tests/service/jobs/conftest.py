"""Servers one after the other with one jobs folder, and a PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from job_calls import ServedJobs, serve
from job_servers import Servers
from postgres import postgres
from stored_jobs import Stores

from service.jobs.store.database import Database
from service.jobs.store.job_tables import JobTables


@pytest.fixture
async def served() -> AsyncIterator[ServedJobs]:
    """A server in this process, with a fake predictor and every setting as it is by default."""
    async with serve() as served:
        yield served


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(tmp_path, stack)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture
def url(postgres_server: str) -> Iterator[str]:
    """Return the URL of an empty database, in a PostgreSQL that all tests have."""
    admin = sa.create_engine(
        postgres_server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE jobs")
    try:
        yield f"{postgres_server.rpartition('/')[0]}/jobs"
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql("DROP DATABASE jobs WITH (FORCE)")
        admin.dispose()


@pytest.fixture
def stores(url: str) -> Iterator[Stores]:
    """Yield what two servers write with that share a PostgreSQL."""
    opened = JobTables(Database.at_url(url)), JobTables(Database.at_url(url))
    yield opened
    for store in opened:
        store.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.process)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    """Yield what two servers write with, on either kind of database: one after the other has the SQLite of a folder."""
    if request.param == "postgres":
        yield request.getfixturevalue("stores")
        return
    store = JobTables(Database.in_file(tmp_path / "jobs.sqlite"))
    yield store, store
    store.close()
