"""The example: a shop of four services that find each other and place real orders. `make run` starts it.

Reading order: `catalog` (the smallest), `payments` (idempotency keys), `inventory` (streams), `orders` (calls the other
three), then what they share: `database`, `errors`, `products`. `runner` is what starts them and buys from them; `shop`
is generated from `protos/shop`.
"""
