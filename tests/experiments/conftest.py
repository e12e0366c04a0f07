"""What the tests of the scripts share."""

import pytest
import train

from tests.common.scripts import QUICK, call


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The workdir of a finished run of `QUICK`, to be read only."""
    workdir = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        assert call(train, patch, *QUICK, "--workdir", workdir) == 0
    return workdir
