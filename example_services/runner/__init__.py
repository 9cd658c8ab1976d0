"""What `make run` starts: the processes of the shop, customers who buy from it, and a view of both.

Reading order: `fleet` (the processes), `instance` (one of them), `customers`, `view`; `__main__` puts them together.
"""
