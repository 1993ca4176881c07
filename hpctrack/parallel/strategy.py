"""How model and optimizer are spread over ranks: each strategy is an Engine, one line in STRATEGIES."""

from __future__ import annotations

from hpctrack.parallel.ddp import DDPEngine
from hpctrack.parallel.engine import Engine
from hpctrack.parallel.fsdp import FSDPEngine
from hpctrack.parallel.zero import ZeroEngine

STRATEGIES: dict[str, type[Engine]] = {"ddp": DDPEngine, "fsdp": FSDPEngine, "deepspeed": ZeroEngine}
