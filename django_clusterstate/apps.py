from django.apps import AppConfig


class ClusterStateConfig(AppConfig):
    name = "django_clusterstate"
    verbose_name = "Cluster"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401, PLC0415 - registers them; settings are ready only now
