"""The supervisor of one service. Few imports, no Django: it must be small and start fast."""
