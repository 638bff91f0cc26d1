"""Values of classes that are derived from text, numbers and the like, and what each is without its class."""

import datetime
import enum
from decimal import Decimal
from typing import Any

from django.db.models import IntegerChoices, TextChoices
from django.template import Context, Template
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

SOON = datetime.datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


class Whole(int):
    def __int__(self) -> int:
        return -1


class Real(float):
    pass


class Raw(bytes):
    pass


class When(datetime.datetime):
    pass


class Exact(Decimal):
    pass


class Color(TextChoices):
    RED = "red"


class Size(IntegerChoices):
    BIG = 3


class Kind(enum.StrEnum):
    ONE = "one"


class Number(enum.IntEnum):
    TWO = 2


def rendered() -> Any:
    return Template("<b>{{ name }}</b>").render(Context({"name": "<Ann>"}))


# name -> (value, what it comes back as)
DERIVED: dict[str, tuple[Any, Any]] = {
    "SafeString": (mark_safe("<b>"), "<b>"),
    "empty SafeString": (mark_safe(""), ""),
    "lazy text": (lazystr("lazy"), "lazy"),
    "lazy translation": (gettext_lazy("Yes"), "Yes"),
    "lazy SafeString": (lazystr(mark_safe("<b>")), "<b>"),
    "str": (Text("é"), "é"),
    "int": (Whole(-(2**63)), -(2**63)),
    "long int": (Whole(2**64 - 1), 2**64 - 1),
    "float": (Real(2.5), 2.5),
    "bytes": (Raw(b"\0\xff"), b"\0\xff"),
    "datetime": (When(2030, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC), SOON),
    "Decimal": (Exact("1.50"), "1.50"),
    "TextChoices": (Color.RED, "red"),
    "IntegerChoices": (Size.BIG, 3),
    "StrEnum": (Kind.ONE, "one"),
    "IntEnum": (Number.TWO, 2),
}
