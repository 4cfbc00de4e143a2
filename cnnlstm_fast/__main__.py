"""``python -m cnnlstm_fast``: the same as ``cnnlstm-fast``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
