"""The command-line client: standard library only; knows the HTTP API and nothing of Django or CRIU."""
