"""`python -m trainer.ensemble`."""

import sys

from trainer.ensemble.ensembles import main

if __name__ == "__main__":
    sys.exit(main())
