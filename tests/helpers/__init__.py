"""What several test modules use: tiny networks, images, worker processes."""
