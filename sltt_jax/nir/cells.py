"""Cells of this library as NIR's neurons."""

from typing import Any, NamedTuple

import numpy as np

from sltt_jax.blocks import PyTree
from sltt_jax.cell_layers import LI, LIF, Recurrent, Synaptic
from sltt_jax.models.chain import Call
from sltt_jax.models.folding import at_path
from sltt_jax.time_constants import LOGIT_DECAY, tau_of


class Cell(NamedTuple):
    """Parameters of a layer of cells, each for every one of them, `[..., C]`, in double precision.

    Attributes:
      name: of the layer, for people.
      tau, tau_syn: time constants in steps; `tau_syn` is None but for `Synaptic`.
      v_threshold, v_reset: None for `LI`.
      decay_input: the input is multiplied by `1/tau`.
    """

    name: str
    tau: np.ndarray
    tau_syn: np.ndarray | None
    v_threshold: np.ndarray | None
    v_reset: np.ndarray | None
    decay_input: bool

    def folded_gain(self) -> np.ndarray | float:
        """Returns what the weights before it are multiplied by so that its node has `r = 1`, `[C]` or 1.

        Raises:
          ValueError: it is another one for neurons of the same channel, which have the same weights.
        """
        if self.decay_input or self.tau_syn is not None or np.isinf(self.tau).all():
            return 1.0
        of_channel = self.tau.reshape(-1, self.tau.shape[-1])
        if not (of_channel == of_channel[0]).all():
            raise ValueError(
                f"the tau of {self.name} differs within a channel, whose neurons have the same weights: it "
                "cannot be folded into them, use fold_tau=False"
            )
        return of_channel[0]

    def node(self, nir: Any, dt: float, *, fold_tau: bool) -> Any:
        """Makes the node, of a module `nir`.

        Raises:
          ValueError: NIR has no such neurons.
        """
        first = lambda a: np.moveaxis(a, -1, 0)
        ones = first(np.ones_like(self.tau))
        tau, none_leaks = first(self.tau), np.isinf(self.tau).all()
        if np.isinf(tau).any() and not (none_leaks and self.v_threshold is not None and self.tau_syn is None):
            raise ValueError(
                f"{self.name} has tau=inf: NIR has that for all neurons of a LIF layer, or for none"
            )
        r = ones if self.decay_input or fold_tau else tau
        if self.v_threshold is None:
            return nir.LI(tau=tau * dt, r=r, v_leak=0 * ones)
        fires = {"v_threshold": first(self.v_threshold), "v_reset": first(self.v_reset)}
        if none_leaks:
            return nir.IF(r=ones / dt, **fires)
        if self.tau_syn is None:
            return nir.LIF(tau=tau * dt, r=r, v_leak=fires["v_reset"], **fires)
        tau_syn = first(self.tau_syn)
        r = ones if self.decay_input else tau
        return nir.CubaLIF(
            tau_syn=tau_syn * dt, tau_mem=tau * dt, r=r, v_leak=fires["v_reset"], w_in=tau_syn, **fires
        )


def cell_of(call: Call, params: PyTree) -> Cell:
    """Reads the parameters of a layer of cells, those that are learned from `params` of the whole network.

    Raises:
      ValueError: it is of a kind that NIR does not have, or resets softly.
    """
    layer = call.module.cell if isinstance(call.module, Recurrent) else call.module
    if not isinstance(layer, LIF | LI | Synaptic):
        raise ValueError(
            f"{call.name} has cells {type(layer).__name__}, for which NIR has no node; it has them for LIF, "
            "LI and Synaptic"
        )
    learned = at_path(params, layer.path) if layer.learn_tau else {}
    shape = call.answer.shape

    def every(value):
        return np.broadcast_to(np.asarray(value, np.float64), (1, *shape))[0]

    def time_constant(tau, ending=""):
        p = learned.get(LOGIT_DECAY + ending)
        return every(tau if p is None else tau_of(p))

    if isinstance(layer, LI):
        return Cell(call.name, time_constant(layer.tau), None, None, None, layer.decay_input)
    neuron = layer.neuron
    if neuron.v_reset is None:
        raise ValueError(
            f"{call.name} has a soft reset (v_reset=None), and NIR knows none: its neurons have only a "
            "v_reset that they are set to. Train with Neuron(v_reset=0.0), in experiments/train.py with "
            "--v-reset 0"
        )
    return Cell(
        call.name,
        time_constant(neuron.tau),
        time_constant(layer.tau_syn, "_syn") if isinstance(layer, Synaptic) else None,
        every(neuron.v_threshold),
        every(neuron.v_reset),
        neuron.decay_input,
    )
