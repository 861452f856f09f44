"""Fuzzing of what reads files that a hostile service, image or archive can shape."""
