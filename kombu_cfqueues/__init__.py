"""Cloudflare Queues as the broker of Kombu and Celery applications."""

__version__ = "0.1.0"
