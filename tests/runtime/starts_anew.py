"""Starts itself anew for huge pages; prints its number, what glibc was told and its arguments."""

import json
import os
import sys

from maskvlm_jax.runtime import host

host.use_huge_pages()
print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:]]))
