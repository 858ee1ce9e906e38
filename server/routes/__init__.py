"""The routes of ``/v1``, a module per subject. They translate; the registry and the runs decide."""
