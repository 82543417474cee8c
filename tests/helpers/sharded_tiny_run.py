"""tiny_run.py with FSDP2 on the CPU, where accelerate would not shard: the process passes for one with a GPU."""

import json
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from helpers.tiny_run import tiny_run

if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    folder, settings, *options = sys.argv[1:]
    tiny_run(folder, "--resume" in options, **json.loads(settings))
