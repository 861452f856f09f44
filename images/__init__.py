"""Images: rows about dumps, and the operations on them. It never reads the image pool itself."""
