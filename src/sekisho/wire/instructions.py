"""Instructions that stand behind the first words of a conversation, for models whose template refuses them there."""

import msgspec

from sekisho.core.turn import Message, Turn

_INSTRUCTIONS = ("system", "developer")


def leading_only(turn: Turn) -> Turn:
    """The turn with its late instructions told as the user's words, in their place. Two messages of the user that
    meet by this become one, since such templates want the roles to alternate. Without any: the same object."""
    told: list[Message] = []
    opened = moved = joins = False
    for message in turn.messages:
        late = opened and message.role in _INSTRUCTIONS
        opened = opened or message.role not in _INSTRUCTIONS
        if late:
            message = Message("user", message.parts)
            moved = True
        if message.role == "user" and (late or joins) and told[-1].role == "user":
            told[-1] = msgspec.structs.replace(told[-1], parts=told[-1].parts + message.parts)
        else:
            told.append(message)
        joins = late
    return msgspec.structs.replace(turn, messages=tuple(told)) if moved else turn
