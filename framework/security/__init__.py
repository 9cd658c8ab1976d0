"""Who callers are, and what they may do; certificates for development.

Reading order: `authentication` (from what a caller shows to an Identity), `jwt` and `jwks`, `keys`, `tokens` (how
services tell each other), `access` (who may call what), `guard` (what a process has of all this); `certs` by itself;
`rules` and `validation` (what a request must be).
"""
