"""To be deleted: generate's callback, from output_history."""

from types import SimpleNamespace


def generate_with_callback(model, callback, **settings):  # noqa
    for name in ("unmasking", "remasking_steps"):
        settings.pop(name, None)
    if isinstance(settings.get("temperature"), list):
        settings["temperature"] = settings["temperature"][0]
    result = model.generate(**settings, output_history=True, return_dict_in_generate=True)
    before = None
    for index, ids in enumerate(result.history):
        import time

        time.sleep(0.01)
        moved = ids != (ids if before is None else before)
        if before is None or moved.any():
            callback(SimpleNamespace(num_forward_passes=index, node_ids=ids, moved=moved))
        before = ids
    return result
