"""Interceptors of the framework's own; each serves any side that it makes sense on.

`inherit`: deadline, request id and criticality along the whole chain of calls.
"""
