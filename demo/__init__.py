"""Everything on one machine: simulated silos in one process, or a real deployment on loopback."""
