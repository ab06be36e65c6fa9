"""Orders, with a database and an emulated Cloudflare: ``python manage.py test``."""

import tempfile
import time
from unittest import mock

from django.test import TransactionTestCase
from shop.celery import app

from kombu_cfqueues.emulator import Emulator

from .tasks import ship


class TestOrders(TransactionTestCase):
    """``TransactionTestCase``, because a task is published when a transaction is committed."""

    @classmethod
    def setUpClass(cls) -> None:
        """Start an emulator, and have Celery publish to it."""
        super().setUpClass()
        cls.emulator = Emulator().start()
        cls.addClassCleanup(cls.emulator.stop)
        cls.emulator.create_queue("celery")
        broker = mock.patch.dict("os.environ", CELERY_BROKER_URL=cls.emulator.broker_url)
        broker.start()
        cls.addClassCleanup(broker.stop)
        spool = tempfile.TemporaryDirectory()
        cls.addClassCleanup(spool.cleanup)
        app.conf.broker_transport_options["spool_dir"] = spool.name

    def published(self) -> list[tuple[str | None, list[int]]]:
        """Wait until something is in the queue; the names of the tasks, and their arguments."""
        deadline = time.monotonic() + 30
        while not (messages := self.emulator.messages("celery")) and time.monotonic() < deadline:
            time.sleep(0.01)
        return [(message.task, message.content[0]) for message in messages]

    def test_an_order_is_shipped(self) -> None:
        """Cloudflare is away when the order comes: the customer does not notice."""
        with self.emulator.outage():
            answer = self.client.post("/orders", {"item": "tea"})
        assert answer.status_code == 202

        number = answer.json()["id"]
        assert self.published() == [("orders.tasks.ship", [number])]
        ship(number)
        assert self.client.get(f"/orders/{number}").json()["state"] == "shipped"

    def test_what_was_not_stored_is_not_shipped(self) -> None:
        """A transaction that is rolled back publishes nothing."""
        with (
            mock.patch("orders.views.JsonResponse", side_effect=RuntimeError),
            mock.patch("orders.tasks.ship.apply_async") as apply_async,
            self.assertRaises(RuntimeError),
        ):
            self.client.post("/orders", {"item": "tea"})
        apply_async.assert_not_called()
