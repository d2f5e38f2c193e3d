"""Self-attention operators: public functions, modules, and the backends that compute them.

``functional`` holds the operators and every argument check, ``modules`` (vector attention) and
``local`` (scalar attention) their ``nn.Module`` faces, ``relations`` the table of relation
functions, ``mappings`` what makes weights of them, ``backends`` the choice of who computes. Below:
``ops`` are the operators as torch sees them (``operators``, ``gradients``, ``flops``),
``kernelset`` is what a device must offer for them, ``plain`` the kernels in torch itself,
``folding`` the matrices of a frozen mapping. ``reference`` is the formulation that defines what is
right, ``fused`` what ``native`` (CPU) and ``cuda`` (CuPy) share.
"""
