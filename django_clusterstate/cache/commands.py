"""Commands of cache operations that call users' code: defaults, serializers and compressors."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from msgspec import Struct

from ..client.operations import Operation

T = TypeVar("T")


class Compute(Struct, frozen=True):
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


class CallInThread(Struct, frozen=True):
    """Calls `function`; in asyncio in a thread. The result is what it returns; raises what it raises."""

    function: Callable[..., Any]
    args: Sequence[Any]

    def run(self, client: object) -> Any:
        return self.function(*self.args)

    async def arun(self, client: object) -> Any:
        return await sync_to_async(self.function)(*self.args)


def convert(function: Callable[..., T], *args: Any) -> Operation[T]:
    """Calls a function that serialises or deserialises values.

    Some values query the database meanwhile, such as lazy querysets. Django refuses that in an event loop, and then the
    function is called again in a thread.
    """
    try:
        return function(*args)
    except SynchronousOnlyOperation:
        result: T = yield CallInThread(function, args)
        return result
