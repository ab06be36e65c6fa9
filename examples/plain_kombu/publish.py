"""Publish an order for each argument, and end when Cloudflare has them all."""

import sys

from kombu import Connection

import kombu_cfqueues  # noqa: F401  makes cfqueues:// known to Kombu


def publish(broker_url: str, items: list[str]) -> None:
    """Publish orders; what returns is accepted, what is not raises."""
    with Connection(broker_url) as connection:
        producer = connection.Producer(routing_key="orders")
        for item in items:
            producer.publish({"item": item})


if __name__ == "__main__":
    publish("cfqueues://", sys.argv[1:])
