"""What a conversion leaves out is said."""

from helpers.foreign_checkpoints import save_foreign_checkpoint

from modeling_treediff.conversion import convert, load_source


def test_what_a_llama_does_otherwise_is_said(tmp_path, tokenizer, sample_tree):
    rotary = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    settings = {"rope_parameters": rotary, "hidden_act": "gelu", "attention_bias": True}
    save_foreign_checkpoint(tmp_path, tokenizer, "llama", **settings)
    _, report = convert(load_source(str(tmp_path)), sample_tree)
    assert {"biases", "MLPs", "rotary scaling", "causal mask"} <= {part.part for part in report.left_out}
    assert {part.part for part in report.new} == {"MLPs", "head"}
