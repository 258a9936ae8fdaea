from collections.abc import Iterator

import pytest
import torch

from harvest.store import Store
from tests.synthetic import Synthetic, synthetic_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """8,000 rows of `Synthetic`, at the sites x and y."""
    return synthetic_store(tmp_path_factory.mktemp("store"), Synthetic())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices this small are multiplied fastest by one thread, and the same way by every process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
