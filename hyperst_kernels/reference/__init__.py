"""The mathematics, in plain PyTorch: the specification every kernel is held to.

Formulas are written in the symbols of ``docs/explanation/lorentz.md``. Every function takes floating tensors of one dtype and a
0-d curvature tensor ``c`` of that dtype, checks nothing, and is differentiable with the right limit at the branch
points (origin, coincident points, cone rim).
"""
