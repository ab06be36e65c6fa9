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
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
