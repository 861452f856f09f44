"""Fixtures of the fault suite."""

from tests.faults.campaign import campaign
from tests.faults.lab import lab, only_lab

__all__ = ["campaign", "lab", "only_lab"]
