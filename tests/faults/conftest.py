"""Fixtures of the fault suite."""

from tests.faults.campaign import campaign
from tests.faults.lab import lab, only_lab
from tests.faults.tight import only_tight, tight

__all__ = ["campaign", "lab", "only_lab", "only_tight", "tight"]
