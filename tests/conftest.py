import contextlib
import functools
import importlib.util
import io
import itertools
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside one another; read when torch is imported

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import AutoTokenizer

from modeling_treediff import LevelSchedule, TreeDiffForDiffusionLM, VocabularyTree

REPOSITORY = Path(__file__).parents[1]
SAMPLE = REPOSITORY / "tree_artifacts" / "sotu-8k"


def pytest_configure(config):
    """Keep what tests cache away from the user's cache; before `datasets` is imported, which reads this once."""
    config.cache_folder = tempfile.TemporaryDirectory(prefix="treediff-tests-")
    os.environ["HF_DATASETS_CACHE"] = config.cache_folder.name
    os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"  # without a network each count waits for a time-out


def pytest_unconfigure(config):
    config.cache_folder.cleanup()


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """What is compared bit by bit or against fp32 truth runs on the CPU, also on a machine with a GPU."""
    if "gpu" not in request.keywords:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one precision per process."""
    forget_accelerate()


def forget_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


SEQUENTIAL = {"schedule": "sequential"}  # one level after the other


def tiny_model(tree: VocabularyTree, seed: int = 0, **fields) -> TreeDiffForDiffusionLM:
    """A model of a few thousand parameters with weights large enough to matter."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
    }
    return TreeDiffForDiffusionLM.from_tree(tree, **(sizes | fields)).eval()


def generate_recorded(model, seed: int = 0, **settings):
    """What `generate` returns with everything it can tell."""
    settings = {"output_history": True, "return_dict_in_generate": True} | settings
    return model.generate(generator=torch.Generator().manual_seed(seed), **settings)


def tokens_by_enumeration(model, node_ids, place: int) -> torch.Tensor:
    """(V,) log-probabilities at a place of (T,) node ids: one forward for each node on the way to a token.

    With the sequential schedule, all others stand at most one level below the node whose children are asked for.
    """
    tree, start = model.tree, int(node_ids[place])
    log_V = torch.full((tree.vocab_size,), -torch.inf, dtype=torch.promote_types(model.dtype, torch.float32))

    @functools.cache
    @torch.no_grad()
    def children(parent: int) -> torch.Tensor:
        seen = node_ids.clone()
        if model.config.schedule == "sequential":
            for index, node in enumerate(node_ids.tolist()):
                while tree.depth[node] > tree.depth[parent] + 1:
                    node = int(tree.parent[node])
                seen[index] = node
        seen[place] = parent
        return TreeDiffForDiffusionLM.forward(model, seen[None]).logits[0, place].log_softmax(-1)

    for token in range(tree.vocab_size):
        path = tree.ancestors[token].tolist()
        if start in path:
            steps = list(itertools.pairwise(path[path.index(start) :]))
            log_V[token] = sum(children(parent)[tree.child_slot[child]] for parent, child in steps)
    return log_V


def quadrature(schedule: LevelSchedule, points: int = 80):
    """Times and measures of Gauss-Legendre quadrature in every interval of a schedule.

    The substitution 1 - (1 - s)^3 tames the logarithms of the poisson schedule at t = 1.
    """
    node, weight = np.polynomial.legendre.leggauss(points)
    for start, end in itertools.pairwise(schedule.boundaries):
        fraction = (node + 1) / 2
        warped, speed = 1 - (1 - fraction) ** 3, 3 * (1 - fraction) ** 2
        for place, factor in zip(warped, speed * weight / 2, strict=True):
            yield start + (end - start) * place, (end - start) * factor


@pytest.fixture
def tree() -> VocabularyTree:
    return VocabularyTree.random(100, branching=5, depth=3, seed=1, metadata={"tokenizer": "a test"})


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(SAMPLE)


@pytest.fixture
def model(tree) -> TreeDiffForDiffusionLM:
    return tiny_model(tree, **SEQUENTIAL)


def environment_on_the_cpu(**more: str) -> dict[str, str]:
    """For processes that import the package from this checkout, offline."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    fixed = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return {**os.environ, **fixed, **more}


def run_python(*arguments: str | Path, code: str | None = None, timeout: int = 300, **environment: str):
    """Run a fresh Python, offline, outside the repository; `code` runs without the package's folder on the path."""
    command = [sys.executable, *(["-c", code] if code else []), *map(str, arguments)]
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Remote code is copied there file by file: tests beside one another must not share the folder.
    fixed["HF_MODULES_CACHE"] = os.path.join(environment.get("HF_HOME", os.environ["HF_DATASETS_CACHE"]), "modules")
    return subprocess.run(
        command,
        cwd=environment.pop("cwd", REPOSITORY),
        env={**os.environ, **fixed, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_here(script: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Run a script of the repository as `run_python` does, without the seconds that a fresh process imports for."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        forget_accelerate()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                print(stop.code if isinstance(stop.code, str) else "", end="", file=stderr)
            except Exception:
                code = 1
                traceback.print_exc()
    return subprocess.CompletedProcess(sys.argv, code, stdout.getvalue(), stderr.getvalue())


def load_example(name: str):
    """Return a script of examples/ as a module, under its name: scripts there may import one another."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
