import pytest

from sltt_jax.data.images import tfds_builders
from tests.common.official_files import CLASSES, SIZES


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    for name in CLASSES:
        monkeypatch.setitem(tfds_builders.PUBLISHED, name, SIZES)
