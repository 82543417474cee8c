"""What becomes a tree model."""

from helpers.options import parse, refusal

from modeling_treediff.cli.options.model import Process


def test_a_checkpoint_an_output_and_a_process():
    conversion, process = parse("convert", "gpt2", "--output", "made", "--head", "leaf", "--layers", "2")
    assert (conversion.checkpoint, str(conversion.output), conversion.layers) == ("gpt2", "made", 2)
    assert process == Process(head="leaf")
    assert "required: --output" in refusal("convert", "gpt2")
