"""Orders: taken here, shipped by a worker."""
