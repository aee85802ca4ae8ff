"""What the commands of launch import, done once: the fork server of tests/warm_launch.py imports this."""

import gc
import pkgutil
from importlib import import_module

import pytest  # noqa: F401 - every forked process imports the main module, which is pytest's

import launcher

for module in pkgutil.walk_packages(launcher.__path__, "launcher."):
    import_module(module.name)
for name in ("kubernetes.config", "kubernetes.dynamic", "pathspec", "urllib3"):  # imported within functions
    import_module(name)
gc.collect()
gc.freeze()  # no command looks through all of it again
