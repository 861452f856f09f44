"""What a browser shows of services, images and jobs, and what it can ask for; no rows of its own."""
