"""Every subcommand that loads a model says in one line what is not one."""

import pytest
from helpers.processes import last_line, run_here
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config

COMMANDS = {
    "generate": lambda name: ["generate", name],
    "evaluate": lambda name: ["evaluate", name, __file__],
    "analyze-errors": lambda name: ["analyze-errors", name, "--text", __file__],
    "plan-memory": lambda name: ["plan-memory", "--from", name],
    "train": lambda name: ["train", "--from", name, "--dry-run", "--output", "unused"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_of_another_kind_is_refused(command, tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    ran = run_here(*COMMANDS[command](str(tmp_path)))
    assert last_line(ran).endswith(f"{tmp_path} is a gpt2 model, not one of treediff.")


WHOLE = {
    "convert": lambda name: ["convert", name, "--output", "unused"],
    "push": lambda name: ["push", name, "someone/a-model", "--dry-run"],
}


@pytest.mark.parametrize("command", [*COMMANDS, *WHOLE])
def test_an_adapter_is_refused(command, model, tmp_path):
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    said = last_line(run_here(*(COMMANDS | WHOLE)[command](str(tmp_path))))
    assert f"{tmp_path} is an adapter, not a whole model: merge it into its model" in said
