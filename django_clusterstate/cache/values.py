"""How values become bytes and back."""

import pickle
from typing import Any


class PickleSerializer:
    """Turns values into bytes and back. Anyone who can write to the cluster can run code: see docs/settings.md."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)
