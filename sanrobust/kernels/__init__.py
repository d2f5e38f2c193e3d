"""Self-attention operators: public functions, modules, and the backends that compute them.

``functional`` holds the operators and every argument check, ``modules`` their ``nn.Module``
faces, ``backends`` the choice of who computes, ``reference`` the formulation that defines what
is right.
"""
