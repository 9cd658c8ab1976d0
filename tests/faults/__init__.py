"""The short form of every fault: real instances in a real Consul, fewer calls, and goals for so few."""
