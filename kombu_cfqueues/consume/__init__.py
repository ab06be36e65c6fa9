"""Consuming: pulling ahead, leases and acknowledgements."""
