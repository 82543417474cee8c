import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside one another; read when torch is imported

import pytest
import torch
from helpers.foreign_checkpoints import save_foreign_checkpoint
from helpers.installation import install_wheel
from helpers.models import SEQUENTIAL, tiny_model
from helpers.processes import SAMPLE, forget_accelerate
from transformers import AutoTokenizer

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.building.balanced import random_tree


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


@pytest.fixture
def tree() -> VocabularyTree:
    return random_tree(100, branching=5, depth=3, seed=1, metadata={"tokenizer": "a test"})


@pytest.fixture
def uneven() -> VocabularyTree:
    """Three clusters of 4, 2 and 1 tokens; slot 1 of the root is empty, tokens are not in order."""
    return VocabularyTree.from_paths([[3, 0], [0, 2], [0, 0], [2, 1], [0, 1], [2, 0], [0, 3]], 4)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(SAMPLE)


@pytest.fixture
def model(tree) -> TreeDiffForDiffusionLM:
    return tiny_model(tree, **SEQUENTIAL)


@pytest.fixture(scope="session")
def sample_tree() -> VocabularyTree:
    return VocabularyTree.from_pretrained(SAMPLE)


@pytest.fixture(scope="session")
def checkpoints(tokenizer, tmp_path_factory):
    """Folder and model of another architecture by its kind, made when first asked for."""
    made = {}

    def checkpoint(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder, save_foreign_checkpoint(folder, tokenizer, kind)
        return made[kind]

    return checkpoint


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Where the package is installed from a wheel."""
    return install_wheel(tmp_path_factory.mktemp("installation"))
