"""Collective calls: an error on one process is raised on all, so that none waits for ever."""

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

Result = TypeVar("Result")


def join_processes() -> PartialState:
    """Connect the processes of this run, before anything else asks which process it is.

    Raises:
        ValueError: a launcher started several processes, and accelerate sees one: each would train a model of its own.

    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != state.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but accelerate sees {state.num_processes}. Without accelerators, set "
            "ACCELERATE_USE_CPU=true in the environment."
        )
    return state


def together(function: Callable[[], Result]) -> Result:
    """Call the function on every process and return each its own result; an error on one is raised on all."""
    result, error = None, None
    try:
        result = function()
    except Exception as raised:  # noqa: BLE001 -- raised again below
        error = raised
    errors = gather_object([_portable(error)]) if PartialState().num_processes > 1 else []
    if error := error or next((other for other in errors if other is not None), None):
        raise error
    return result  # type: ignore[return-value]


def on_main(function: Callable[[], Result]) -> Result:
    """Call the function on the main process alone and return its result, or raise its error, on every process."""
    state = PartialState()
    result = together(lambda: function() if state.is_main_process else None)
    return broadcast_object_list([result])[0] if state.num_processes > 1 else result  # type: ignore[return-value]


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that another process can read."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 -- whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
