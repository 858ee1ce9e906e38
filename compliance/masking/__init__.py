"""Masking: what a column is, pseudonyms, formats kept, values coarsened, and tables that single nobody out."""
