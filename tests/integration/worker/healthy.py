"""The application of the workers, with a health check."""

from tasks import app

import kombu_cfqueues.health

app.steps["worker"].add(kombu_cfqueues.health.HealthStep)
