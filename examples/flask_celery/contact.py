"""A contact form, whose mails are sent by a Celery worker."""

from celery import Celery, Task
from flask import Flask, current_app, request
from kombu.exceptions import OperationalError


def create_celery(flask_app: Flask) -> Celery:
    """Make a Celery application whose tasks run in Flask's application context."""

    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with flask_app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(flask_app.name, task_cls=FlaskTask)
    celery_app.conf.update(
        broker_url="cfqueues://",
        broker_transport_options={"publish_timeout": 5},  # seconds that a request waits at most
        broker_pool_limit=40,  # as many threads may publish at one time
        task_ignore_result=True,
        worker_enable_remote_control=False,  # Cloudflare Queues cannot broadcast
    )
    return celery_app


app = Flask(__name__)
app.config["RECIPIENT"] = "hello@example.com"
celery_app = create_celery(app)


@celery_app.task
def send_mail(sender: str, text: str) -> None:
    """Send a mail; here it is only logged."""
    current_app.logger.warning("%s to %s: %s", sender, current_app.config["RECIPIENT"], text)


@app.post("/contact")
def contact() -> tuple[dict[str, str], int]:
    """Hand the mail to the queue: 202 when Cloudflare has it."""
    try:
        send_mail.delay(request.form["sender"], request.form["text"])
    except OperationalError:  # Cloudflare, or the way to it, is down
        app.logger.exception("a mail was not accepted")
        return {"error": "Please try again in a minute."}, 503
    return {"status": "queued"}, 202
