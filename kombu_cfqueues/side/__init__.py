"""The control broker, which reaches every process at once: fanout, remote control, events.

Cloudflare Queues cannot broadcast.  The option ``control_url`` names a broker that can, and this
package is what one process has there: one connection, which one thread owns.
"""

from .bell import ControlBell
from .broker import ControlBroker
from .link import EVENTS, Link
from .port import Arrived, Port
from .registry import control_broker, forget_control_brokers

__all__ = [
    "EVENTS",
    "Arrived",
    "ControlBell",
    "ControlBroker",
    "Link",
    "Port",
    "control_broker",
    "forget_control_brokers",
]
