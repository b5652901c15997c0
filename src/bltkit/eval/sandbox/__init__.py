"""Runs programs that a model wrote where they can do no harm: in new namespaces, with limits, or not at all."""

from bltkit.eval.sandbox.sandbox import Sandbox
from bltkit.eval.sandbox.sandbox_limits import ProgramOutcome, SandboxLimits

__all__ = ["ProgramOutcome", "Sandbox", "SandboxLimits"]
