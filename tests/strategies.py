"""What tests of strategies share: DeepSpeed, imported once before ranks are forked, or a reason to skip."""

from __future__ import annotations

import importlib.util
import os

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
if HAS_DEEPSPEED:
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  imported when it starts, and slow

needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs DeepSpeed: pip install 'hpctrack[deepspeed]'")
VARIANTS = {  # strategy and its options
    "ddp": {},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, kept": {"strategy": "fsdp", "reshard_after_forward": False},
    "zero 1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}


def variants(*names: str) -> list:
    """Parameters for pytest: these variants, or all; those of DeepSpeed are skipped where it is missing."""
    return [
        pytest.param(name, marks=[needs_deepspeed] if name.startswith("zero") else []) for name in names or VARIANTS
    ]
