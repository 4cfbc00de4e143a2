"""``python -m bench``: the same as ``cnnlstm-fast bench``, from a checkout."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
