"""A shop: what it does in a web request, and what it leaves to a Celery worker."""

from __future__ import annotations

from celery import Celery

app = Celery("shop", broker="cfqueues://")
app.conf.task_default_queue = "emails"


@app.task
def send_receipt(order: int, locale: str = "en") -> None:
    """Mail a receipt."""


@app.task
def ask_for_review(order: int) -> None:
    """Mail a question, some days later."""


def pay(order: int, locale: str = "en") -> None:
    """Take the money; the mails follow."""
    send_receipt.delay(order, locale=locale)
    ask_for_review.apply_async((order,), countdown=3600)
