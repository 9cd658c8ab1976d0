"""Benchmarks: each compares with a named rival in the same run, in paired alternating blocks.

`make bench` runs all and writes `bench/results.json`; `make bench B=name` runs those whose name begins so.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported
