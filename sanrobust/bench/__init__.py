"""Speed and memory of the attention operators and of whole models, against what else one can use.

``run`` is the door; ``contenders`` says what is timed, ``samples`` judges the timings without
torch, ``machine`` measures the limits, ``peak`` the memory, ``unfold`` is the rival formulation.
"""
