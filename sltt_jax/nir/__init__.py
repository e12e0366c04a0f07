"""Networks in NIR, the Neuromorphic Intermediate Representation (Pedersen et al. 2024), and back.

    graph = to_nir(model, params, state, x)          # nir.write("digits.nir", graph)
    apply, params, state = from_nir("digits.nir")    # of snnTorch, spikingjelly, norse, ...

NIR's neurons are differential equations and know no time step; `dt` is how many seconds a step is. What maps
to what is in docs/neuromorphic.md. It needs the package nir: pip install "sltt-jax[nir]".
"""

from sltt_jax.nir.exporting import to_nir
from sltt_jax.nir.importing import NIRNetwork, from_nir, model_from_nir

__all__ = ["NIRNetwork", "from_nir", "model_from_nir", "to_nir"]
