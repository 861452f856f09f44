"""`make test-compose`: docker-compose.yml on a real engine; apart from other tests, for it takes minutes."""
