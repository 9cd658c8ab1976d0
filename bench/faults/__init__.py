"""The fault lab: five real instances in a real Consul, a load, a fault, and what became of the calls.

    make faults              every scenario, in full; exit code 1 when a goal is missed
    make faults S=sigstop    the scenarios whose names begin so
    make faults N=3          each three times: medians, and the lowest and highest

Our client and a bare grpc.aio one (`round_robin` and a `retryPolicy` over a fixed list of addresses) meet the same fault,
most of the time the very same one: both call the same instances, each from a process of its own. The goals hold for
ours, and are goals of the value. Results go to `bench/faults.json`.

Reading order: `service` (what is called), `control` (what the processes share), `server` (an instance), `load` (a client
that calls at a fixed rate), `lab` (starts and breaks them), `proxies` (breaks what is between them), `report` (what was
measured), `scenarios` and `overloads` (what happens, and the goals).
"""
