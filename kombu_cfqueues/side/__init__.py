"""The control broker, which reaches every process at once: fanout, remote control, events.

Cloudflare Queues cannot broadcast.  The option ``control_url`` names a broker that can.  This
package is a process's connection to that broker, which one thread owns.
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
