"""Devices and processes: mesh, sharding, rendezvous, watchdog, preemption."""
