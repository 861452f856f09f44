"""What dies, and what must be true afterwards: the promise that no service is ever lost, nor there twice.

`make test` runs each fault a few times, `make test-faults` as often as docs/reliability.md says.
"""
