"""Django's settings: as few as a project can have, and the broker's."""

import os
from pathlib import Path

SECRET_KEY = os.environ.get("SECRET_KEY", "only for development")
DEBUG = True
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["orders"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", Path(__file__).parents[1] / "db.sqlite3"),
    }
}

CELERY_BROKER_URL = "cfqueues://"
CELERY_BROKER_TRANSPORT_OPTIONS = {"publish_mode": "spool"}  # a view waits for the disk alone
CELERY_BROKER_POOL_LIMIT = 40  # as many threads may publish at one time
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_TIME_LIMIT = 600  # seconds; the lease of a task (visibility_timeout) is longer
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False  # Cloudflare Queues cannot broadcast
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
