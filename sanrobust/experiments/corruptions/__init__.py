"""The common corruptions of Hendrycks and Dietterich (ICLR 2019), made by their published formulae.

No package that is kept makes them all as published, so they are written here with NumPy, SciPy and
Pillow; `results/README.md` of the repository compares the packages. Three versions of the benchmark
were published, each with strengths of its own: see `parameters`.
"""
