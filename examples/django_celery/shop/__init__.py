"""The project.  Celery is imported with it, so that tasks find their application."""

from .celery import app as celery_app

__all__ = ["celery_app"]
