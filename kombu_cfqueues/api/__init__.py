"""Cloudflare's HTTP API: requests, connections, responses, queue names and ids."""
