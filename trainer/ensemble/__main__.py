"""`python -m trainer.ensemble`: weight-space ensembles of two models."""

import sys

from trainer.ensemble.ensembles import main

if __name__ == "__main__":
    sys.exit(main())
