from django.db import models
from django.utils.translation import gettext_lazy as _


class NodeAddress(models.Model):
    """The address that a node advertises, for `DISCOVERY = "database"`. See `database_discovery.DatabaseDiscovery`."""

    name = models.CharField(max_length=100)
    cluster = models.CharField(max_length=60)
    address = models.CharField(max_length=255)
    seen = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("cluster", "name"), name="clusterstate_one_address_a_node"),)

    def __str__(self) -> str:
        return f"{self.name} at {self.address}"


class NoRows(models.Manager["Cluster"]):
    """The manager of a model without a table: commands that read all models, such as `dumpdata`, find no rows."""

    def get_queryset(self) -> models.QuerySet["Cluster"]:
        return super().get_queryset().none()


class Cluster(models.Model):
    """The cluster in the admin and in permissions. It has no table, since the nodes hold its state."""

    objects = NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view",)
        permissions = (
            ("reset_limit", _("Can reset a rate limit")),
            ("delete_cache_key", _("Can delete a key of a cache")),
            ("clear_cache", _("Can empty a cache")),
        )
        verbose_name = _("cluster")
        verbose_name_plural = _("Cluster")
