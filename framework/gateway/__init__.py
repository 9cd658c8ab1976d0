"""One HTTP address for the services of a registry: REST, Connect, gRPC-Web, events and WebSockets, without their code.

Reading order: `description` (what a service says of itself, and what may not contradict what), `learning` (asking it),
`backend` (one service: its instances, its description, the channel to it), `gateway` (all of them behind one port).
"""

from framework.gateway.gateway import Gateway

__all__ = ["Gateway"]
