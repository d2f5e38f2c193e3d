"""Parameters and FLOPs of networks, and the paper's tables of them beside ours.

``conventions`` says what counts, ``counter`` counts one network, ``models`` finds it by name,
``tables`` sets our figures beside the paper's, ``sheet`` renders them. ``settings`` needs no
torch.
"""
