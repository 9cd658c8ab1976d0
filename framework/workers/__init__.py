"""Several processes of one service behind one port, and the one that starts them, watches over them, registers them.

Reading order: `restart` (when one that died is started again), `count` (how many), `port` (what they share), `worker`
(one of them, and what it says to the supervisor), `member` (the same from the other side), `supervisor`.

A worker is the command of the supervisor run once more, never a fork: gRPC does not survive one, and a reload is to
read code and settings anew. A socket pair between the two carries orders one way and reports the other. It closes when
the supervisor dies, however that happens, and the worker drains.
"""
