"""The metric of `evaluate`: the figures of `evaluate_texts`, in a fresh process and with a loaded model."""

import json

import pytest
from helpers.eight_words import FLAT, TEXTS, make_tokenizer, uniform_model
from helpers.models import tiny_model
from helpers.processes import run_python

from modeling_treediff.evaluation import WindowProtocol, evaluate_texts
from modeling_treediff.hub import save_checkpoint


@pytest.fixture
def tokenizer():
    return make_tokenizer()


METRIC = """
import json, sys
from modeling_treediff.evaluation.metric import TreeDiffPerplexity
metric = TreeDiffPerplexity()
for refused in ([], ["a", ""]):
    try:
        metric.compute(predictions=refused, model=sys.argv[1])
    except ValueError as error:
        print(error, file=sys.stderr)
metric.add_batch(predictions=["a b the é"])
metric.add(prediction="c d a")
print(json.dumps(metric.compute(model=sys.argv[1], sequence_length=5, stride=2, seed=3, num_samples=4)))
print(metric.description)
"""


def test_the_metric_works_offline_in_a_fresh_process(tokenizer, tmp_path):
    model = tiny_model(FLAT)
    save_checkpoint(model, tmp_path / "model", tokenizer)
    home = str(tmp_path / "cache")
    ran = run_python(tmp_path / "model", code=METRIC, HF_HOME=home, HF_METRICS_CACHE=home, HF_MODULES_CACHE=home)
    assert ran.returncode == 0, ran.stderr
    assert "no text to evaluate" in ran.stderr and "Text 1 (counted from 0) of 2 is empty" in ran.stderr
    figures, _, description = ran.stdout.partition("\n")
    expected = evaluate_texts(model, tokenizer, TEXTS[:2], WindowProtocol(5, 2), seed=3, num_samples=4)
    assert json.loads(figures) == json.loads(json.dumps(expected.to_dict()))
    assert {"nelbo", "standard_error", "perplexity", "bits_per_byte"} <= json.loads(figures).keys()
    assert "NELBO" in description


def test_the_metric_takes_a_loaded_model_with_its_tokenizer(tokenizer, tmp_path):
    from modeling_treediff.evaluation.metric import TreeDiffPerplexity

    metric, model = TreeDiffPerplexity(cache_dir=str(tmp_path)), uniform_model(FLAT)
    figures = metric.compute(predictions=TEXTS, model=model, tokenizer=tokenizer)
    assert figures["bits_per_byte"] == pytest.approx(17 * 3 / 33, rel=1e-6)
    assert not list(tmp_path.rglob("*.arrow"))  # what `evaluate` cached is gone
    with pytest.raises(ValueError, match="needs its tokenizer"):
        metric.compute(predictions=TEXTS, model=model)
    assert metric.info.features["predictions"].dtype == "string" and "2604.03537" in metric.citation
