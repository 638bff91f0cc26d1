"""Numbers in the words of the reader's language."""

from datetime import timedelta

from django.utils import timezone
from django.utils.formats import number_format
from django.utils.timesince import timesince
from django.utils.translation import gettext


def duration(seconds: float) -> str:
    """`4.2 s`, or from a minute on in the words of Django's `timesince`."""
    if seconds < 60:
        return gettext("%(seconds)s s") % {"seconds": number_format(seconds, decimal_pos=1)}
    now = timezone.now()
    return timesince(now - timedelta(seconds=seconds), now)
