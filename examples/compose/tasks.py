"""A task; publish it with ``python tasks.py``."""

import os

from celery import Celery

app = Celery("tasks", broker="cfqueues://")
app.conf.task_default_queue = "emails"
app.conf.task_ignore_result = True
if "CFQUEUES_API" in os.environ:  # an emulator in another container
    app.conf.broker_transport_options = {
        "base_url": os.environ["CFQUEUES_API"],
        "allow_insecure_http": True,
    }


@app.task
def send_receipt(order):
    """Send the receipt of an order."""
    print(f"receipt for order {order}")


if __name__ == "__main__":
    send_receipt.delay(1042)
