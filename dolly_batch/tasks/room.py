"""Whether any row at all can be answered, which is known before any work."""

from dolly_batch.errors import ConfigError
from dolly_batch.tasks.base import PreparedTask, TaskModel
from dolly_batch.tasks.truncate import fill


def check_room(prepared: PreparedTask, model: TaskModel, *, generates: bool) -> None:
    """Raise ConfigError where not even a row of one letter fits the model's positions together with its answer."""
    if prepared.any_length:
        return  # the task splits texts, and has seen to it
    instruction = fill(prepared.literals, ["x"] * (len(prepared.literals) - 1))
    num_tokens = len(model.encoder.encode(instruction, "x" if prepared.reads_text else None))
    room = model.max_positions - num_tokens
    if prepared.num_reserved <= room:
        return
    if generates and room > 0:
        raise ConfigError(
            f"generation.max_new_tokens: {prepared.num_reserved} leaves no row any room: the shortest prompt takes "
            f"{num_tokens} of the model's {model.max_positions} tokens; set it to {room} or less"
        )
    raise ConfigError(
        f"task: no row can be answered: the shortest prompt takes {num_tokens} tokens, the answer up to "
        f"{prepared.num_reserved}, and the model has {model.max_positions}; shorten what the task itself says (its "
        "template, examples, instruction, labels or descriptions)"
    )
