"""Interceptors of the framework's own; each serves any side that it makes sense on.

`deadline`: how long a call may take; `request_id`: one id along the whole chain of calls.
"""
