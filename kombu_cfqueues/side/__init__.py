"""The control broker, which reaches every process at once: fanout, remote control, events.

Cloudflare Queues cannot broadcast.  The option ``control_url`` names a broker that can, and this
package is what one process has there: one connection, which one thread owns.
"""

from .broker import ControlBroker, control_broker, forget_control_brokers
from .port import Arrived, Port

__all__ = ["Arrived", "ControlBroker", "Port", "control_broker", "forget_control_brokers"]
