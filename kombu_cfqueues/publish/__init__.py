"""Publishing: many callers share few requests."""
