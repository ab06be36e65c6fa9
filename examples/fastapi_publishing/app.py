"""Orders come in over HTTP, and what follows is left to a queue."""

import asyncio
import uuid

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

celery_app = Celery("shop", broker="cfqueues://")
celery_app.conf.update(
    broker_transport_options={"publish_mode": "spool"},  # a publish waits for the disk alone
    broker_pool_limit=40,  # as many threads may publish at one time
    task_ignore_result=True,
    worker_enable_remote_control=False,  # Cloudflare Queues cannot broadcast
)

api = FastAPI()


class Order(BaseModel):
    """What a customer sends."""

    item: str


@celery_app.task
def ship(order_id: str, item: str) -> None:
    """Ship an order; a Celery worker or a Cloudflare Worker runs this."""


@api.post("/orders", status_code=202)
async def take_order(order: Order) -> dict[str, str]:
    """Take an order.  ``delay`` waits for the disk, in a thread: the event loop goes on."""
    order_id = str(uuid.uuid4())
    await asyncio.to_thread(ship.delay, order_id, order.item)
    return {"id": order_id}
