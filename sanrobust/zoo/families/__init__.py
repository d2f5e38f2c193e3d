"""Families of models: each declared in one file, all of them collected in one list."""
