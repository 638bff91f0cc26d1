"""The addresses of the site that debug toolbar watches."""

from debug_toolbar.toolbar import debug_toolbar_urls
from django.urls import include, path

urlpatterns = [path("", include("testproject.urls")), *debug_toolbar_urls()]
