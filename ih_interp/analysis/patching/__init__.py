"""Who feeds whom: path patching, wiring, preserving, redundancy, self-repair."""
