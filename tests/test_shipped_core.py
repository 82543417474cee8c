"""What ships with a checkpoint: few files, short, that do what a model does and nothing else.

Who sets `trust_remote_code=True` must be able to read them in an hour, and needs nothing else of this package.
"""

import ast
import importlib
import io
import json
import re
import sys
import tokenize
from pathlib import Path

import pytest
import torch
from helpers.hub_double import HubDouble
from helpers.models import tiny_model
from helpers.processes import REPOSITORY, run_python
from helpers.tiny_run import tiny_tokenizer, tiny_tree
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, TreeDiffForMaskedLM, TreeDiffGenerationConfig
from modeling_treediff.hub import save_checkpoint

PACKAGE = REPOSITORY / "modeling_treediff"
SHIPPED = {
    "backbone_treediff.py",
    "configuration_treediff.py",
    "diffusion_process.py",
    "drafts_treediff.py",
    "generation_config_treediff.py",
    "generation_treediff.py",
    "node_layers_treediff.py",
    "likelihood_treediff.py",
    "modeling_treediff.py",
    "noise_schedules.py",
    "sampling_treediff.py",
    "vocabulary_tree.py",
}
ENTRY = "modeling_treediff.py"
# Lines: the aim, then 400 for the factorised embedding, blocks and caches, 30 for refusing what does not fit them, 170
# for perturbed nodes, 40 for constraints on them, 40 for remasking, 20 for the rotary base by length, 60 for lookahead.
MOST_FILES, MOST_LINES = 12, 3000 + 400 + 30 + 170 + 40 + 40 + 20 + 60
# As patterns on the code alone, without comments and texts.
FORBIDDEN = {
    "talks to the Hub": r"HfApi|create_(commit|repo|branch)|CommitOperation\w*|upload_\w+|\w+_download",
    "opens connections": r"requests|httpx|urllib\w*|aiohttp|socket|http",
    "removes files": r"rmtree|unlink|rmdir|removedirs|shutil|os\.remove",
    "runs what it is given": r"__import__|import_module|subprocess|popen|os\.system|pickle|marshal",
    "knows model cards": r"\w*ModelCard\w*|metadata_(save|load)|jinja2|EvalResult",
    "knows training": r"Adam\w*|SGD|optim|lr_scheduler|(?<!integrations\.)accelerate|Accelerator|Trainer|DataLoader",
    "knows corpora": r"datasets|load_dataset|\w*[Cc]orpus\w*|documents",
}


def shipped_files() -> list[Path]:
    return [PACKAGE / ENTRY, *(Path(file) for file in get_relative_import_files(str(PACKAGE / ENTRY)))]


def code_alone(text: str) -> str:
    """The code of a file without comments, docstrings and other texts; what is said may name anything."""
    kinds = (tokenize.COMMENT, tokenize.STRING)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return " ".join(token.string for token in tokens if token.type not in kinds).replace(" . ", ".")


def forbidden(kind: str, text: str) -> list[str]:
    return [match[0] for match in re.finditer(rf"(?<!\w)({FORBIDDEN[kind]})(?!\w)", code_alone(text))]


def test_the_shipped_files_are_these():
    assert {file.name for file in shipped_files()} == SHIPPED
    assert {file.resolve().parent for file in shipped_files()} == {PACKAGE}


def test_they_can_be_read_in_an_hour():
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in shipped_files()}
    assert len(lines) <= MOST_FILES and sum(lines.values()) <= MOST_LINES, lines


def test_no_other_flat_file_is_taken_for_one_of_them():
    """What lies beside them and does not ship is what makes them a package."""
    assert {file.name for file in PACKAGE.glob("*.py")} - SHIPPED <= {"__init__.py"}


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_no_shipped_file(kind):
    """Such as: no shipped file removes files."""
    found = {file.name: forbidden(kind, file.read_text(encoding="utf-8")) for file in shipped_files()}
    assert not any(found.values()), {name: names for name, names in found.items() if names}


def test_a_forbidden_name_is_found_where_it_is_used_and_not_where_it_is_spoken_of():
    spoken = 'def clean(path):\n    """Never requests: unlink."""\n'
    used = "    os.remove(path)  # rmtree\n    (path / path).unlink()\n    path.unlink(missing_ok=True)\n"
    assert forbidden("removes files", spoken + used) == ["os.remove", "unlink", "unlink"]
    assert forbidden("opens connections", spoken + used) == []


def test_they_import_only_what_every_user_has_and_siblings():
    """Every import anywhere in them: a sibling by name, Python's own, one of five packages, or asked for before."""
    known = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"} | sys.stdlib_module_names
    names = {file.name for file in shipped_files()}
    for file in shipped_files():
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        asked = [node for node in nodes if isinstance(node, ast.If) and "_available()" in ast.unparse(node.test)]
        optional = [node for condition in asked for node in ast.walk(condition)]
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in names, (file.name, node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom) and node not in optional:
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert known.issuperset(module.split(".")[0] for module in modules), (file.name, modules)
            elif isinstance(node, ast.Name):
                assert node.id not in ("eval", "exec", "compile"), file.name


def test_the_config_leads_to_all_of_them():
    """By the code that the config file leads to, transformers tells apart checkpoints in folders of the same name."""
    found = get_relative_import_files(str(PACKAGE / "configuration_treediff.py"))
    assert {Path(file).name for file in found} == SHIPPED


# ---- without the package ------------------------------------------------------------------------------------------

REPO = "someone/a-model"
USE = """
import json, sys
sys.modules["modeling_treediff"] = None  # as if the package were not installed: importing it raises
import torch
from transformers import AutoModel, AutoTokenizer, TextStreamer
source, folder, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModel.from_pretrained(source, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
prompt = torch.tensor([[1, 2, tokenizer.mask_token_id, 3]])
settings = {"num_steps": 6, "suppress_tokens": [5], "max_new_tokens": 3}
text = model.generate(prompt, generator=torch.Generator().manual_seed(0), **settings)
assert text.shape == (1, 7) and text.max() < model.tree.vocab_size and text[0, [0, 1, 3]].tolist() == [1, 2, 3]
bound = model.nelbo(text, num_samples=2, generator=torch.Generator().manual_seed(0))
cluster, allowed, steps = int(model.tree.ancestors[7, 1]), list(range(0, 64, 2)), []
coarse = model.generate(torch.tensor([[1, cluster, 2]]), generator=torch.Generator().manual_seed(0), num_steps=4)
assert model.tree.ancestors[coarse[0, 1], 1] == cluster and coarse[0, [0, 2]].tolist() == [1, 2]
told = model.generate(
    max_new_tokens=6, num_steps=6, allowed_tokens=allowed, temperature=[0.9, 0.5], unmasking="confidence",
    remasking_steps=1, output_history=True, return_dict_in_generate=True, callback=steps.append,
    streamer=TextStreamer(tokenizer), generator=torch.Generator().manual_seed(0),
)
assert set(told.sequences[0].tolist()) <= set(allowed) and len(steps) >= len(told.history) == 7
assert torch.equal(told.history[-1], told.sequences) and (told.history[0] == model.tree.root_id).all()
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
again = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert again.nelbo(text, num_samples=2, generator=torch.Generator().manual_seed(0)).value == bound.value
model.push_to_hub("someone/a-model", **options)
tokenizer.push_to_hub("someone/a-model", **options)
pulled = AutoModel.from_pretrained("someone/a-model", trust_remote_code=True, **options)
assert pulled.nelbo(text, num_samples=2, generator=torch.Generator().manual_seed(0)).value == bound.value
assert pulled.tree.metadata == model.tree.metadata and pulled.tree.sha256 == model.tree.sha256
assert AutoTokenizer.from_pretrained("someone/a-model", trust_remote_code=True, **options).mask_token_id == 64
print(json.dumps([text.tolist(), bound.value]))
"""


def use_elsewhere(source, tmp_path, hub, **options):
    """Load, generate, measure, save and push in a process that has transformers alone."""
    environment = hub.environment(tmp_path / "home", PYTHONPATH="")
    arguments = (source, tmp_path / "saved", json.dumps(options))
    ran = run_python(*arguments, code=USE, cwd=str(tmp_path), **environment)
    assert ran.returncode == 0, ran.stderr
    text, bound = json.loads(ran.stdout.splitlines()[-1])
    return torch.tensor(text), bound


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tiny_model(tiny_tree()), tmp_path / "model", tiny_tokenizer())
    return tmp_path / "model"


def test_all_is_done_where_the_package_is_not_installed(checkpoint, tmp_path):
    with HubDouble() as hub:
        text, bound = use_elsewhere(checkpoint, tmp_path, hub)
        files = hub.repositories[REPO].files()
    model = TreeDiffForDiffusionLM.from_pretrained(tmp_path / "saved")
    assert model.nelbo(text, num_samples=2, generator=torch.Generator().manual_seed(0)).value == bound
    code = {file.name: file.read_bytes() for file in shipped_files()}
    saved = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    assert {name: content for name, content in saved.items() if name.endswith(".py")} == code
    assert {name: content for name, content in files.items() if name.endswith(".py")} == code
    assert set(saved) | {".gitattributes", "README.md"} == set(files)
    for name in ("model.safetensors", "vocabulary_tree.safetensors", "tokenizer.json"):
        assert files[name] == saved[name]


def test_a_readme_on_the_hub_stays(checkpoint, tmp_path):
    written = "---\ntags:\n- poems\nlicense: mit\n---\n\n# Ours, 3 µm\n"
    with HubDouble() as hub:
        hub.put(REPO, {"README.md": written.encode(), "notes.txt": b"mine"})
        use_elsewhere(checkpoint, tmp_path, hub)
        files = hub.repositories[REPO].files()
        assert files["README.md"].decode() == written and files["notes.txt"] == b"mine"


def test_a_model_from_the_hub_is_pushed_back_by_its_own_code(checkpoint, tmp_path):
    with HubDouble() as hub:
        before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
        hub.put(REPO, before)
        use_elsewhere(REPO, tmp_path, hub)
        after = hub.repositories[REPO].files()
    assert after["README.md"].decode() == before["README.md"].decode()
    assert {name for name in before if name.endswith(".py")} == {name for name in after if name.endswith(".py")}
    assert after["model.safetensors"] == before["model.safetensors"]


def test_the_suffix_marks_what_transformers_looks_up_or_subclasses():
    """Theory has none: files without a network or a class of the models, that know no suffixed file but the config."""
    bases = {base for cls in (TreeDiffForDiffusionLM, TreeDiffForMaskedLM) for base in cls.__mro__}
    bases |= {TreeDiffConfig, TreeDiffGenerationConfig, *TreeDiffForDiffusionLM.generation_config_class.__mro__}
    for file in shipped_files():
        module = importlib.import_module(f"modeling_treediff.{file.stem}")
        own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        classes = [value for value in own if isinstance(value, type)]
        siblings = {match[1] for match in re.finditer(r"^from \.(\w+) import", file.read_text("utf-8"), re.MULTILINE)}
        theory = (
            not any(issubclass(cls, torch.nn.Module) or cls in bases for cls in classes)
            and {name for name in siblings if name.endswith("_treediff")} <= {"configuration_treediff"}
        )  # fmt: skip
        assert file.stem.endswith("_treediff") != theory, file.name


VERSIONS = """
import json, sys
sys.modules["modeling_treediff"] = None
import torch
from transformers import AutoModel
folders, nodes = sys.argv[1:], torch.arange(64, 68)[None]
scores = [AutoModel.from_pretrained(one, trust_remote_code=True)(nodes).logits[0, 0, 0].item() for one in folders]
print(json.dumps(scores))
"""


def test_checkpoints_in_folders_of_one_name_each_run_their_own_code(tmp_path):
    """One changes its head, one the model itself; the first is loaded once more at the end."""
    changes = {
        "one": None,
        "two": ("node_layers_treediff.py", "return logits_BTK.masked_fill(", "return 2 * logits_BTK.masked_fill("),
        "three": ("modeling_treediff.py", "output.logits = self.head(", "output.logits = 3 * self.head("),
    }
    model = tiny_model(tiny_tree())
    for name, change in changes.items():
        model.save_pretrained(tmp_path / name / "model")
        if change:
            file, before, after = change
            text = (tmp_path / name / "model" / file).read_text(encoding="utf-8")
            assert text.count(before) == 1
            (tmp_path / name / "model" / file).write_text(text.replace(before, after), encoding="utf-8")
    folders = [tmp_path / name / "model" for name in (*changes, "one")]
    ran = run_python(*folders, code=VERSIONS, cwd=tmp_path, HF_HOME=str(tmp_path / "hf"))
    assert ran.returncode == 0, ran.stderr
    scores = json.loads(ran.stdout.splitlines()[-1])
    assert scores == pytest.approx([scores[0] * factor for factor in (1, 2, 3, 1)], rel=1e-5) and abs(scores[0]) > 0.01
