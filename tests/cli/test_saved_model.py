"""Every subcommand that loads a model says in one line what is not one."""

import pytest
from helpers.processes import last_line, run_here
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
