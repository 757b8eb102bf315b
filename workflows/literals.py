"""Parameter values that reach a container as they were given, and those that would not.

Argo replaces its tags in the text of the manifest, again and again; Go writes some characters in a way
that JSON does not read; and the kubelet expands `$(NAME)` in arguments.
https://github.com/argoproj/argo-workflows/issues/15512
"""

import unicodedata

_MOST_BYTES = 100_000  # an argument of a process has 128 KiB
_PLAIN_CONTROLS = "\b\f\n\r\t"
_PRINTED = "LMNPS"


def fault(value: str) -> str | None:
    """What would change the value on its way, and what to do instead; None if nothing would."""
    if "{{" in value:
        return "'{{' would be taken for a tag of Argo; put the text into a file and give its path"
    if "$(" in value or "$$" in value:
        return "'$(' and '$$' would be expanded by Kubernetes; put the text into a file and give its path"
    for character in value:
        if _is_lost(character):
            name = unicodedata.name(character, "a control character")
            return f"U+{ord(character):04X} ({name}) cannot be passed on by Argo; leave it out"
    if len(value.encode()) > _MOST_BYTES:
        return f"longer than {_MOST_BYTES:,} bytes; put it into a file and give its path"
    return None


def _is_lost(character: str) -> bool:
    """Whether Go's strconv.Quote writes it as no JSON reader takes it."""
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return character not in _PLAIN_CONTROLS
    if 0xD800 <= code < 0xE000:
        return True
    return code > 0xFFFF and unicodedata.category(character)[0] not in _PRINTED
