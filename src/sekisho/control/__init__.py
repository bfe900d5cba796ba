"""The control agent: signals -> plan -> policy -> engine.

What decides is made of pure functions from values to values (`rules`, `quality`, `fallback`, `balancer`, `tuner`);
reading and acting stand at the rim (`signals`, `actuators`, `api`). Every decision is a record (`base.Decision`).
"""
