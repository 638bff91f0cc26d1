"""The sites' pages. Under ASGI (`DEMO_ASYNC`) the views are the asynchronous ones."""

import os

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import URLPattern, URLResolver, include, path

from . import views

ASYNC = bool(os.environ.get("DEMO_ASYNC"))

urlpatterns: list[URLPattern | URLResolver] = [
    path("", views.hello),
    path("limited/", views.alimited if ASYNC else views.limited),
    path("value/", views.avalue if ASYNC else views.value),
    path("cluster/", include("django_clusterstate.urls")),
    path("admin/", admin.site.urls),
    path("static/<path:path>", serve, {"insecure": True}),  # a demonstration has no web server before it
]
