"""Cloudflare's HTTP API: requests, connections, answers and queue ids."""
