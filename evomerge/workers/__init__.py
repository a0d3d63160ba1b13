"""Many devices and many machines: workers of this machine, workers that join, workers on Ray."""
