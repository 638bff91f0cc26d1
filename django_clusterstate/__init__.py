"""A cluster made of the hosts a Django project already runs on."""

__version__ = "0.1.0"
