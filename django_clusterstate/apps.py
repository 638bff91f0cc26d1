from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ClusterStateConfig(AppConfig):
    name = "django_clusterstate"
    verbose_name = _("Cluster")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401, PLC0415 - registers them; settings are ready only now
