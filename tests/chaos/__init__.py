"""Nothing is lost on the worst day: real processes, killed and cut off, and all accounted for."""
