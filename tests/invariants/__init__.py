"""What must hold for every call, whatever its arity, its wire and its end."""
