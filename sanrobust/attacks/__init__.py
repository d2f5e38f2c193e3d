"""Attacks on classifiers: ours, batched, and those of torchattacks.

Importing this package loads no torch; `budget`, `losses`, `targets`, `settings` and `describe` stay
free of it, so that a command line is read and refused before anything heavy is loaded.
"""
