"""What this machine has: processor, threads and their limits, floating-point settings. Knows no vectors."""
