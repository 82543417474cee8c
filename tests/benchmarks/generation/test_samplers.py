"""Samplers are valid settings."""

from benchmarks.generation import samplers
from modeling_treediff import TreeDiffGenerationConfig


def test_every_sampler_is_a_valid_setting_and_takes_no_passes_that_cannot_move():
    depth, length, passes = 2, 64, [1, 8, 16, 32, 64, 128, 256, 512]
    for name, sampler in samplers.all_samplers().items():
        budgets = sampler.budgets(passes, depth, length)
        assert budgets == [128] if sampler.chooses_passes else budgets[0] == 8
        for budget in budgets:
            settings = TreeDiffGenerationConfig(**sampler.arguments(budget))
            moving = budget - settings.remasking_steps
            assert moving >= depth and (moving <= depth * length or settings.unmasking == "random"), name
            assert settings.remasking_steps == (round(budget / 4) if ", remasking" in name else 0)
            _, _, temperature = name.partition(", temperature ")
            assert settings.temperature == float(temperature or 1)
            assert settings.top_p == (0.9 if "top-p" in name else None)
            assert settings.remasking_rate == (float(name.split(",")[0].split()[-1]) if "rate" in name else 0)
    assert samplers.all_samplers()["random"].arguments(8) == {"top_p": None, "num_steps": 8}
