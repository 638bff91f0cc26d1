"""Commands of cache operations that call users' code: defaults, serializers and compressors."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation


class Compute(NamedTuple):
    """Computes the default of `get_or_set()`, a value or a callable; in asyncio what it returns may be awaitable.

    The result is the value; raises what the callable raises.
    """

    default: Any

    def run(self, client: object) -> Any:
        value = self._value()
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError("get_or_set() can't await the coroutine that its default returned: use aget_or_set()")
        return value

    async def arun(self, client: object) -> Any:
        value = self._value()
        return await value if inspect.isawaitable(value) else value

    def _value(self) -> Any:
        return self.default() if callable(self.default) else self.default


class Convert:
    """Calls a function that serialises or deserialises values. The result is what it returns; raises what it raises.

    Some values query the database meanwhile, such as lazy querysets. Django refuses that in an event loop, and then the
    function is called again in a thread.
    """

    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._function = function
        self._arguments = arguments

    def run(self, client: object) -> Any:
        return self._function(*self._arguments)

    async def arun(self, client: object) -> Any:
        try:
            return self._function(*self._arguments)
        except SynchronousOnlyOperation:
            return await sync_to_async(self._function)(*self._arguments)
