"""Attacks on classifiers: one targeted L-inf PGD, and a guarded door to torchattacks.

Importing this package loads no torch; `budget`, `targets` and `settings` stay free of it so that
a command line can be read and refused before anything heavy is loaded.
"""
