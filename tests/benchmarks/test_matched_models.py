"""Models have the budget, or the depth, of the reference."""

from benchmarks import contenders, matched_models


def test_models_have_the_budget_or_the_depth_of_the_reference_at_full_sizes():
    for hidden_size, (layers, _) in matched_models.LAYERS_AND_HEADS.items():
        for vocab_size in (matched_models.VOCABULARIES[0], matched_models.VOCABULARIES[-1]):
            size = matched_models.Size.full(vocab_size, hidden_size)
            models = matched_models.matched_models(matched_models.COMPARED, size)
            budget = models[0].facts["parameters"]
            assert (models[0].contender, models[0].facts["layers"]) == ("mdlm", layers)
            for model in models:
                if "budget" in model.matched:
                    assert abs(model.facts["parameters"] - budget) <= 0.01 * budget
                if "depth" in model.matched:
                    assert model.facts["layers"] == layers


def test_a_model_is_what_its_facts_and_its_contender_say():
    size = matched_models.Size(500, 64, layers=2, heads=2, sequence_length=16, rope_theta=50.0)
    for matched in matched_models.matched_models(matched_models.COMPARED, size):
        model = matched.make()
        assert sum(parameter.numel() for parameter in model.parameters()) == matched.facts["parameters"]
        contender = contenders.CONTENDERS[matched.contender]
        fields = contender.fields | size.fields
        if "budget" in matched.matched:
            fields["hidden_size"] = round(contender.width * size.hidden_size)
        assert fields.items() <= model.config.to_dict().items()


def test_one_model_by_budget_and_by_depth_has_one_title_unless_they_differ_elsewhere():
    def titles(*matched, **options):
        return list(matched_models.by_title([{"contender": "mdlm", "matched": kinds} for kinds in matched], **options))

    both, budget, depth = ["budget", "depth"], ["budget"], ["depth"]
    assert titles(both, both) == ["MDLM (flat)"]
    assert titles(both, budget, depth) == titles(budget, depth) == ["MDLM (flat)", "MDLM (flat), same depth"]
    assert titles(both, budget, depth, kinds=budget) == ["MDLM (flat)"]
