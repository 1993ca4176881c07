"""How busy a rank's GPU is, and what it draws: utilisation, power and energy as NVML has them (extra `gpu`)."""

from __future__ import annotations

import importlib.util
from typing import Any

from hpctrack.parallel.env import Env, gpu_identity

MILLI = 1e-3


class Sensors:
    """The GPU of this rank; without one, or where NVML does not know it, there is nothing to read."""

    def __init__(self, env: Env) -> None:
        self.nvml: Any = None
        if env.device.type != "cuda":
            return
        if importlib.util.find_spec("pynvml") is None:
            env.say("power and utilisation of GPUs are not logged: pip install 'hpctrack[gpu]'")
            return
        import pynvml

        try:
            pynvml.nvmlInit()
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{gpu_identity(env.device)}")
            self.joules = self.energy(pynvml)
        except pynvml.NVMLError as error:
            env.say(f"power and utilisation of GPUs are not logged: NVML: {error}")
            return
        self.nvml = pynvml

    def energy(self, nvml: Any) -> float:
        """Joules since the driver was loaded."""
        return MILLI * nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)

    def read(self) -> tuple[float, float, float, float]:
        """1 if there is something to read, else 0; share of time busy, watts; joules since the last reading."""
        if self.nvml is None:
            return 0.0, 0.0, 0.0, 0.0
        try:
            busy = self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100
            watts = MILLI * self.nvml.nvmlDeviceGetPowerUsage(self.handle)
            before, self.joules = self.joules, self.energy(self.nvml)
        except self.nvml.NVMLError:  # not this GPU, or not any more: others are still read
            self.nvml = None
            return 0.0, 0.0, 0.0, 0.0
        return 1.0, busy, watts, self.joules - before


def means_of_gpus(summed: list[float], events: float) -> dict[str, float]:
    """For metrics: readings summed over ranks as means over the GPUs that could be read, and joules an event."""
    gpus, busy, watts, joules = summed
    if not gpus:
        return {}
    return {"gpu_busy": busy / gpus, "gpu_power_w": watts / gpus, "energy_j_per_event": joules / max(1.0, events)}
