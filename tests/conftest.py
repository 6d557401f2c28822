"""Real images where they are; the same examples in every run; what takes long comes first."""
import pytest, torch
from helpers import DATA
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    "Whole runs first, or one process would be at them when all others have ended"
    items.sort(key=lambda item: item.path.parent.name != "whole")


def pytest_runtest_setup(item):
    "Skip a test marked `data` unless CXR_STN_DATA names a folder that holds what it needs"
    for mark in item.iter_markers("data"):
        if missing := [name for name in mark.args if not (DATA/name).exists()]:
            pytest.skip(f"CXR_STN_DATA names no folder with {', '.join(missing)}")


@pytest.fixture(scope="module")
def one_thread():
    "Torch on one thread: sums in one order"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
