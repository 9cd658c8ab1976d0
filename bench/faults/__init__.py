"""The fault lab: five real instances in a real Consul, a load, a fault, and what became of the calls.

    make faults              every scenario, in full; exit code 1 when a goal is missed
    make faults S=sigstop    the scenarios whose names begin so
    make faults N=3          each three times: medians, and the lowest and highest

The rival is bare grpc.aio: `round_robin` and a `retryPolicy` over a fixed list of addresses. Both clients call the same
instances, which are ours, at the same time, each from a process of its own; but in an overload each has a fleet of its
own, and the rival's is of bare servers. The goals hold for ours, and are goals of the value. A failed call counts as
one that has taken all of its deadline. Figures go to `bench/faults.json`.

The machine should have nothing else to do: calls are due at a fixed rate, whether or not there is CPU for them.

Reading order: `service` (what is called), `control` (what the processes share), `server` (an instance), `load` (a
client that calls at a fixed rate), `lab` (starts and breaks them), `proxies` (breaks what is between them), `report`
(what was measured), `story` (how a scenario goes), `scenarios`, `registries` and `overloads` (what happens, and the
goals).
"""
