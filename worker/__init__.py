"""Everything that happens on a node: supervising, dumping, restoring. Only a few modules know rows."""
