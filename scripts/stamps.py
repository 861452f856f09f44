"""Remembers which set-up steps are done for which inputs, so that a second run is quick; knows no step."""

from __future__ import annotations

import json
from pathlib import Path


class Stamps:
    """A small JSON file: step name → digest of the inputs that it was last done for.

    It is kept inside the virtual environment, so deleting `.venv` forgets everything.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, str] = {}
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            content = {}
        if isinstance(content, dict):
            self._done = {str(step): str(key) for step, key in content.items()}

    def fresh(self, step: str, key: str) -> bool:
        """Tell whether the step was done for just these inputs."""
        return self._done.get(step) == key

    def done(self, step: str, key: str) -> None:
        """Note that the step is done; written at once, so that an interrupted set-up goes on from here."""
        self._done[step] = key
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps(self._done, indent=1, sort_keys=True) + "\n")
        partial.replace(self._path)
