"""Settings of the test suite: the demonstration project's, on a database in memory."""

import sys

from testproject.settings import *  # noqa: F403
from tests.django_suite.fetch import TESTS

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

if not TESTS.is_dir():
    raise SystemExit("Django's own cache tests are missing: run `make test`, or `python -m tests.django_suite.fetch`.")
sys.path.append(str(TESTS))
INSTALLED_APPS = [*INSTALLED_APPS, "cache"]  # noqa: F405 - Django's own cache tests, which have a model
