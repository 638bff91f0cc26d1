"""Settings of a site that debug toolbar and Sentry watch."""

import sentry_sdk
from sentry_sdk.integrations.django import DjangoIntegration

from tests.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "debug_toolbar"]  # noqa: F405
MIDDLEWARE = ["debug_toolbar.middleware.DebugToolbarMiddleware", *MIDDLEWARE]  # noqa: F405
DEBUG = True  # or debug toolbar has no addresses
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "tests.panel.instrumented_urls"
DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": lambda request: True}
DEBUG_TOOLBAR_PANELS = ["debug_toolbar.panels.cache.CachePanel"]

sentry_sdk.init(
    "https://public@sentry.invalid/1",
    transport=lambda event: None,  # nothing leaves the machine
    integrations=[DjangoIntegration(cache_spans=True)],
    traces_sample_rate=1.0,
)
