"""`path("cluster/", include("django_clusterstate.urls"))`: for monitoring, see `docs/metrics.md`."""

from django.urls import path

from . import views

app_name = "clusterstate"
urlpatterns = [
    path("metrics/", views.metrics, name="metrics"),
    path("health/", views.health, name="health"),
    path("ready/", views.ready, name="ready"),
]
