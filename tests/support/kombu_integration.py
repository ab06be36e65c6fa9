"""Kombu's own integration tests of a transport, which are not in its wheel.

From Kombu 5.7.0, ``t/integration/common.py``, without the classes about expiration and priorities,
and without the tests of Kombu's own checks of URLs.

Copyright (c) 2015-2016 Ask Solem & contributors.  All rights reserved.
Copyright (c) 2012-2014 GoPivotal Inc & contributors.  All rights reserved.
Copyright (c) 2009-2012, Ask Solem & contributors.  All rights reserved.

Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:
    * Redistributions of source code must retain the above copyright
      notice, this list of conditions and the following disclaimer.
    * Redistributions in binary form must reproduce the above copyright
      notice, this list of conditions and the following disclaimer in the
      documentation and/or other materials provided with the distribution.
    * Neither the name of Ask Solem nor the
      names of its contributors may be used to endorse or promote products
      derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"
AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO,
THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR
PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL Ask Solem OR CONTRIBUTORS
BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR
CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF
SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS
INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN
CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE)
ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE
POSSIBILITY OF SUCH DAMAGE.
"""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from time import monotonic
from urllib.parse import urlparse
from uuid import uuid4

import kombu
import pytest
from kombu.asynchronous.hub import Hub


class BasicFunctionality:
    def test_connect(self, connection):
        assert connection.connect()
        assert connection.connection
        connection.close()
        assert connection.connection is None
        assert connection.connect()
        assert connection.connection
        connection.close()

    def test_failed_connect(self, invalid_connection):
        # method raises transport exception
        with pytest.raises(Exception):
            invalid_connection.connect()

    def test_failed_connection(self, invalid_connection):
        # method raises transport exception
        with pytest.raises(Exception):
            invalid_connection.connection

    def test_failed_channel(self, invalid_connection):
        # method raises transport exception
        with pytest.raises(Exception):
            invalid_connection.channel()

    def test_failed_default_channel(self, invalid_connection):
        invalid_connection.transport_options = {"max_retries": 1}
        # method raises transport exception
        with pytest.raises(Exception):
            invalid_connection.default_channel

    def test_default_channel_autoconnect(self, connection):
        connection.connect()
        connection.close()
        assert connection.connection is None
        assert connection.default_channel
        assert connection.connection
        connection.close()

    def test_channel(self, connection):
        chan = connection.channel()
        assert chan
        assert connection.connection

    def test_default_channel(self, connection):
        chan = connection.default_channel
        assert chan
        assert connection.connection

    def test_autoretry_default_channel(self, connection):
        calls = []

        def operation(value, channel):
            calls.append(channel)
            return value

        with connection as conn:
            result, channel = conn.autoretry(operation, max_retries=0)("result")
            assert result == "result"
            assert channel is conn.default_channel
            assert calls == [channel]
            assert conn.connected

    def test_publish_consume(self, connection):
        test_queue = kombu.Queue("test", routing_key="test")

        def callback(body, message):
            assert body == {"hello": "world"}
            assert message.content_type == "application/x-python-serialize"
            message.delivery_info["routing_key"] == "test"
            message.delivery_info["exchange"] == ""
            message.ack()
            assert message.payload == body

        with connection as conn:
            with conn.channel() as channel:
                producer = kombu.Producer(channel)
                producer.publish(
                    {"hello": "world"},
                    retry=True,
                    exchange=test_queue.exchange,
                    routing_key=test_queue.routing_key,
                    declare=[test_queue],
                    serializer="pickle",
                )

                consumer = kombu.Consumer(conn, [test_queue], accept=["pickle"])
                consumer.register_callback(callback)
                with consumer:
                    conn.drain_events(timeout=1)

    def test_consume_empty_queue(self, connection):

        def callback(body, message):
            assert False, "Callback should not be called"

        test_queue = kombu.Queue("test_empty", routing_key="test_empty")
        with connection as conn:
            with conn.channel():
                consumer = kombu.Consumer(conn, [test_queue], accept=["pickle"])
                consumer.register_callback(callback)
                with consumer:
                    with pytest.raises(socket.timeout):
                        conn.drain_events(timeout=1)

    def test_simple_queue_publish_consume(self, connection):
        with connection as conn:
            with closing(conn.SimpleQueue("simple_queue_test")) as queue:
                queue.put({"Hello": "World"}, headers={"k1": "v1"})
                message = queue.get(timeout=1)
                assert message.payload == {"Hello": "World"}
                assert message.content_type == "application/json"
                assert message.content_encoding == "utf-8"
                assert message.headers == {"k1": "v1"}
                message.ack()

    def test_simple_buffer_publish_consume(self, connection):
        with connection as conn:
            with closing(conn.SimpleBuffer("simple_buffer_test")) as buf:
                buf.put({"Hello": "World"}, headers={"k1": "v1"})
                message = buf.get(timeout=1)
                assert message.payload == {"Hello": "World"}
                assert message.content_type == "application/json"
                assert message.content_encoding == "utf-8"
                assert message.headers == {"k1": "v1"}
                message.ack()


class BaseExchangeTypes:
    def _callback(self, body, message):
        message.ack()
        assert body == {"hello": "world"}
        assert message.content_type == "application/x-python-serialize"
        message.delivery_info["routing_key"] == "test"
        message.delivery_info["exchange"] == ""
        assert message.payload == body

    def _create_consumer(self, connection, queue):
        consumer = kombu.Consumer(connection, [queue], accept=["pickle"])
        consumer.register_callback(self._callback)
        return consumer

    def _consume_from(self, connection, consumer):
        with consumer:
            connection.drain_events(timeout=1)

    def _consume(self, connection, queue):
        with self._create_consumer(connection, queue):
            connection.drain_events(timeout=1)

    def _publish(self, channel, exchange, queues=None, routing_key=None):
        producer = kombu.Producer(channel, exchange=exchange)
        if routing_key:
            producer.publish(
                {"hello": "world"},
                declare=list(queues) if queues else None,
                serializer="pickle",
                routing_key=routing_key,
            )
        else:
            producer.publish(
                {"hello": "world"}, declare=list(queues) if queues else None, serializer="pickle"
            )

    def test_direct(self, connection):
        ex = kombu.Exchange("test_direct", type="direct")
        test_queue = kombu.Queue("direct1", exchange=ex)

        with connection as conn:
            with conn.channel() as channel:
                self._publish(channel, ex, [test_queue])
                self._consume(conn, test_queue)

    def test_direct_routing_keys(self, connection):
        ex = kombu.Exchange("test_rk_direct", type="direct")
        test_queue1 = kombu.Queue("rk_direct1", exchange=ex, routing_key="d1")
        test_queue2 = kombu.Queue("rk_direct2", exchange=ex, routing_key="d2")

        with connection as conn:
            with conn.channel() as channel:
                self._publish(channel, ex, [test_queue1, test_queue2], "d1")
                self._consume(conn, test_queue1)
                # direct2 queue should not have data
                with pytest.raises(socket.timeout):
                    self._consume(conn, test_queue2)
                # test that publishing using key which is not used results in
                # discarted message.
                self._publish(channel, ex, [test_queue1, test_queue2], "d3")
                with pytest.raises(socket.timeout):
                    self._consume(conn, test_queue1)
                with pytest.raises(socket.timeout):
                    self._consume(conn, test_queue2)

    def test_fanout(self, connection):
        ex = kombu.Exchange("test_fanout", type="fanout")
        test_queue1 = kombu.Queue("fanout1", exchange=ex)
        test_queue2 = kombu.Queue("fanout2", exchange=ex)

        with connection as conn:
            with conn.channel() as channel:
                self._publish(channel, ex, [test_queue1, test_queue2])

                self._consume(conn, test_queue1)
                self._consume(conn, test_queue2)

    def test_topic(self, connection):
        ex = kombu.Exchange("test_topic", type="topic")
        test_queue1 = kombu.Queue("topic1", exchange=ex, routing_key="t.*")
        test_queue2 = kombu.Queue("topic2", exchange=ex, routing_key="t.*")
        test_queue3 = kombu.Queue("topic3", exchange=ex, routing_key="t")

        with connection as conn:
            with conn.channel() as channel:
                self._publish(
                    channel, ex, [test_queue1, test_queue2, test_queue3], routing_key="t.1"
                )
                self._consume(conn, test_queue1)
                self._consume(conn, test_queue2)
                with pytest.raises(socket.timeout):
                    # topic3 queue should not have data
                    self._consume(conn, test_queue3)

    def test_publish_empty_exchange(self, connection):
        ex = kombu.Exchange("test_empty_exchange", type="topic")
        with connection as conn:
            with conn.channel() as channel:
                self._publish(channel, ex, routing_key="t.1")


class BaseMessage:
    def test_ack(self, connection):
        with connection as conn:
            with closing(conn.SimpleQueue("test_ack")) as queue:
                queue.put({"Hello": "World"}, headers={"k1": "v1"})
                message = queue.get_nowait()
                message.ack()
                with pytest.raises(queue.Empty):
                    queue.get_nowait()

    def test_reject_no_requeue(self, connection):
        with connection as conn:
            with closing(conn.SimpleQueue("test_reject_no_requeue")) as queue:
                queue.put({"Hello": "World"}, headers={"k1": "v1"})
                message = queue.get_nowait()
                message.reject(requeue=False)
                with pytest.raises(queue.Empty):
                    queue.get_nowait()

    def test_reject_requeue(self, connection):
        with connection as conn:
            with closing(conn.SimpleQueue("test_reject_requeue")) as queue:
                queue.put({"Hello": "World"}, headers={"k1": "v1"})
                message = queue.get_nowait()
                message.reject(requeue=True)
                message2 = queue.get_nowait()
                assert message.body == message2.body
                message2.ack()

    def test_requeue(self, connection):
        with connection as conn:
            with closing(conn.SimpleQueue("test_requeue")) as queue:
                queue.put({"Hello": "World"}, headers={"k1": "v1"})
                message = queue.get_nowait()
                message.requeue()
                message2 = queue.get_nowait()
                assert message.body == message2.body
                message2.ack()


class BaseEventLoop:
    def test_ack_from_another_thread(self, connection):
        name = f"test_ack_from_another_thread_{uuid4().hex}"
        test_queue = kombu.Queue(name, routing_key=name)
        acked = []
        hub = Hub()

        def ack(message):
            message.ack()
            acked.append(message.payload)

        def callback(body, message):
            threading.Timer(0.1, hub.call_soon, (ack, message)).start()

        with connection as conn:
            with conn.channel() as channel:
                producer = kombu.Producer(channel)
                for body in range(2):
                    producer.publish(
                        body,
                        exchange=test_queue.exchange,
                        routing_key=test_queue.routing_key,
                        declare=[test_queue],
                    )
            consumer = kombu.Consumer(conn, [test_queue], callbacks=[callback], prefetch_count=1)
            with consumer:
                try:
                    conn.register_with_event_loop(hub)
                    deadline = monotonic() + 1
                    while len(acked) < 2 and monotonic() < deadline:
                        hub.run_once()
                    assert acked == [0, 1]
                finally:
                    hub.close()
                    test_queue(consumer.channel).delete()


class BaseFailover(BasicFunctionality):
    def test_connect(self, failover_connection):
        super().test_connect(failover_connection)

    def test_publish_consume(self, failover_connection):
        super().test_publish_consume(failover_connection)

    def test_consume_empty_queue(self, failover_connection):
        super().test_consume_empty_queue(failover_connection)

    def test_simple_buffer_publish_consume(self, failover_connection):
        super().test_simple_buffer_publish_consume(failover_connection)

    def test_failover_switches_to_alternate_url(self, failover_connection):
        """Connecting past a dead first URL must land on the alternate.

        The alternate does not go through ``Connection.__init__``: it is
        re-parsed by ``switch()``, which takes ``transport_cls`` straight
        from the URL scheme.  This is the only integration path where a
        URL-derived transport name is resolved after construction, so it
        needs to keep working now that the name is validated there.
        """
        conn = failover_connection
        assert len(conn.alt) > 1, "fixture must supply an alternate URL"
        dead, live = urlparse(conn.alt[0]), urlparse(conn.alt[-1])
        assert dead.port != live.port, "first URL must be the dead one"
        assert conn.port == dead.port

        assert conn.connect()
        assert conn.connected
        # failover happened: the dead URL was abandoned for the alternate
        assert conn.port == live.port
        # ...and the alternate's scheme survived the URL-derived check
        assert conn.transport_cls == live.scheme
        conn.close()

    def test_failover_to_alias_alternate_is_allowed(self, failover_connection):
        """The check must not get in the way of an ordinary failover URL."""
        conn = failover_connection
        live_url = conn.alt[-1]
        live = urlparse(live_url)

        conn.switch(live_url)

        assert conn.transport_cls == live.scheme
        assert conn.port == live.port
        assert conn.connect()
        assert conn.connected
        conn.close()
