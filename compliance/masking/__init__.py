"""Masking of what a silo exports: generalised tables with their measures, and keyed pseudonyms."""
