"""Models are safetensors: no code of ours writes or reads pickles, which can run code when they are loaded.

The checkpoints *of a run* are the exception: accelerate keeps the optimizer's state, the random states and the place in
the data in pickles. They are read so that they run no code, but for those of sharded runs, which torch reads.
"""

import ast
import re

from helpers.processes import REPOSITORY
from helpers.tiny_run import tiny_network, tiny_run, tiny_tokenizer, tiny_tree
from peft import LoraConfig, get_peft_model

from modeling_treediff.cli.options.fields import trust_option
from modeling_treediff.hub import save_checkpoint

PICKLING = {
    "torch.save",
    "torch.load",
    "pickle.dump",
    "pickle.load",
    "joblib.dump",
    "joblib.load",
    "numpy.load",
    "np.load",
}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle"}
CODE = [file for folder in ("modeling_treediff", "examples") for file in (REPOSITORY / folder).rglob("*.py")]


def pickles(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.suffix in PICKLES)


def used(file):
    """The qualified names, as written, of all that a file takes from modules and objects."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_no_code_reads_or_writes_pickles():
    found = {file.relative_to(REPOSITORY).as_posix(): PICKLING & set(used(file)) for file in CODE}
    assert len(found) > 80 and not any(found.values()), {file: names for file, names in found.items() if names}


def defaults_of(name):
    """The defaults of all parameters of this name."""
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = node.args.posonlyargs + node.args.args
                pairs = [*zip(arguments[::-1], node.args.defaults[::-1], strict=False)]
                pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                yield from (ast.literal_eval(default) for one, default in pairs if one.arg == name and default)


def test_whoever_loads_by_an_auto_class_says_whether_code_is_trusted():
    """Left open, transformers asks on the terminal."""
    silent = [
        (file.relative_to(REPOSITORY).as_posix(), ast.unparse(node))
        for file in CODE
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and re.fullmatch(r"Auto\w+\.from_pretrained", ast.unparse(node.func))
        and "trust_remote_code" not in {word.arg for word in node.keywords}
    ]
    assert silent == []


def test_no_code_trusts_the_code_of_others_unasked():
    asked = [
        (file.relative_to(REPOSITORY).as_posix(), ast.unparse(word.value))
        for file in CODE
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "trust_remote_code"
    ]
    assert asked and all(value == "False" or value.split(".")[-1] == "trust_remote_code" for _, value in asked), asked
    assert trust_option().default is False and all(default is False for default in defaults_of("trust_remote_code"))


def test_what_is_saved_as_a_model_is_safetensors(tmp_path):
    model = tiny_network(tiny_tree())
    save_checkpoint(model, tmp_path / "model", tiny_tokenizer())
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    tiny_tree().save_pretrained(tmp_path / "tree")
    assert not pickles(tmp_path) and len(list(tmp_path.rglob("*.safetensors"))) == 4


def test_a_run_keeps_pickles_in_its_checkpoints_alone_and_no_model_in_them(tmp_path):
    tiny_run(tmp_path)
    found = pickles(tmp_path)
    assert found and all(name.startswith("checkpoint-") and "model" not in name for name in found)
