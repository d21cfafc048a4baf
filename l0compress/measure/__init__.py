"""What a model costs and how fast it is, measured and put into tables.

``bench`` times models in turns, ``footprint`` takes their memory, ``report`` makes tables of both, ``pareto``
says which forms no other beats, ``plot`` makes pictures.
"""
