"""The application of the workers, with a queue that reaches all of them."""

from __future__ import annotations

from kombu import Queue
from kombu.common import Broadcast
from tasks import app

app.conf.task_queues = (Queue("celery"), Broadcast("everybody"))
