import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def x64():
    """Double precision, for identities that are to hold up to rounding."""
    with jax.enable_x64(True):
        yield
