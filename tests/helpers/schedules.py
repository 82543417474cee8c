"""Schedules of every kind, each made for a depth."""

from modeling_treediff.noise_schedules import BinomialSchedule, CosineWarp, PoissonSchedule, SequentialSchedule

DEPTHS = [1, 2, 3, 4]
SCHEDULES = {
    "sequential": SequentialSchedule,
    "uneven": lambda depth: SequentialSchedule(depth, [3.0**level for level in range(depth)]),
    "binomial": BinomialSchedule,
    "poisson": PoissonSchedule,
    "cosine": lambda depth: CosineWarp(SequentialSchedule(depth)),
    "cosine binomial": lambda depth: CosineWarp(BinomialSchedule(depth)),
}
