"""Why an image has no measurements: how the reasons in its records begin."""

EXCLUDED = "excluded: "
"""How the reason of an image begins that the experiment itself leaves out."""
