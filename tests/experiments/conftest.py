"""What the tests of the scripts share."""

import pytest
import train
from PIL import Image

from tests.common.scripts import QUICK, call


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The workdir of a finished run of `QUICK`, to be read only."""
    workdir = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        assert call(train, patch, *QUICK, "--workdir", workdir) == 0
    return workdir


@pytest.fixture
def shapes(tmp_path):
    for y, name in enumerate(("dark", "light")):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (4, 4), 100 * y + i).save(tmp_path / "shapes" / name / f"{i}.png")
    return tmp_path / "shapes"
