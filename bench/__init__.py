"""The benchmark: this package beside Redis, Memcached and what is used with them. Run it with `python -m bench`."""
