from collections.abc import Iterator

import pytest
from integration.ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    two = Ranks(tmp_path_factory.mktemp("ranks") / "meeting")
    yield two
    two.close()
