"""Formats durations and rates for the reader's language."""

from datetime import timedelta

from django.utils import timezone
from django.utils.formats import number_format
from django.utils.timesince import timesince
from django.utils.translation import gettext

from ..core.limits.algorithms import Rule

LONGEST = 100 * 365 * 86400.0  # seconds; longer times are shown alike
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def duration(seconds: float) -> str:
    """`4.2 s`, or the text of Django's `timesince` from one minute on."""
    if seconds < 60:
        return gettext("%(seconds)s s") % {"seconds": number_format(seconds, decimal_pos=1)}
    if not seconds < LONGEST:
        return gettext("more than 100 years")
    now = timezone.now()
    return timesince(now - timedelta(seconds=seconds), now)


def rate(rule: Rule) -> str:
    """The rate as a user writes it: "10/m", "5/30s"."""
    for seconds, unit in _UNITS:
        number, rest = divmod(rule.period, seconds)
        if not rest:
            return f"{rule.limit}/{'' if number == 1 else int(number)}{unit}"
    return f"{rule.limit}/{rule.period}s"
