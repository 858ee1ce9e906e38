"""Trips that do nothing."""
