"""The foreground daemon of one node: starts the site, the worker and their Redis, and keeps them running."""
