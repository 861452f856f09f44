"""Nodes, services and jobs: rows, the operations on them, and how they are asked for. It knows no images."""
