"""PyTorch by hand through `torch.compile`, which needs Triton on a GPU, and a C++ compiler.

The network of one time step is compiled, in the first update: for membranes at rest, and for all others.
"""

from functools import partial

from peers import with_pytorch
from peers.torch_networks import about

__all__ = ["about", "program"]

program = partial(with_pytorch.program, compiled=True)
