"""A store of this machine for the tests of files of any size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from remote_servers import object_server


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The environment of a client of a store with the bucket ``rows``."""
    pytest.importorskip("obstore")
    with object_server("rows") as found:
        yield found
