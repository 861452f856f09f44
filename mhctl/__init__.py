"""The command-line client: standard library only; knows the HTTP API and nothing of Django or CRIU."""

__version__ = "0.1.0"
"""Of all of Miehistö: mhctl may be installed alone, so it stands here and nowhere else."""
