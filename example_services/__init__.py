"""The example: a shop of four services that find each other and place real orders."""
